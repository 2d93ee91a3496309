"""Furniture of web pages: the phrases that menus, cookie notices and footers are made of."""

from __future__ import annotations

from functools import cache

from xmodel.corpus.folding import fold_texts
from xmodel.corpus.search import Phrases, index_phrases

# Looked for in the folded text, as whole words: case, width and spacing do not matter.
FURNITURE = (
    # English
    *("all rights reserved", "terms of service", "terms of use", "terms and conditions", "privacy policy"),
    *("cookie policy", "cookie settings", "accept all cookies", "accept cookies", "we use cookies", "uses cookies"),
    *("to improve your experience", "by continuing to use this site", "subscribe to our newsletter", "sign up for our"),
    *("subscribe now", "follow us on", "share this article", "share this page", "share on facebook", "click here to"),
    *("click here", "read more", "log in or sign up", "log in", "sign up", "sign in", "create an account"),
    *("skip to main content", "skip to content", "back to top", "back to home", "related articles", "related posts"),
    *("leave a comment", "post a comment", "add to cart", "contact us", "about us", "site map", "powered by"),
    *("unsubscribe at any time", "please enable javascript", "enable javascript in your browser", "advertisement"),
    *("download our app", "copyright ©", "forgot your password", "forgot password", "this website uses cookies"),
    *("javascript must be enabled", "you are here", "previous page", "next page", "my account", "shopping cart"),
    *("share on social media", "newsletter", "sitemap", "cart (0)", "send by e-mail"),
    # Chinese
    *("版权所有", "保留所有权利", "未经授权", "未经许可", "不得转载", "禁止转载", "转载请注明", "转载请注明出处"),
    *("隐私政策", "隐私条款", "用户协议", "服务条款", "使用条款", "法律声明", "免责声明", "关于我们", "联系我们"),
    *("网站地图", "友情链接", "返回首页", "返回顶部", "回到顶部", "点击这里", "点击此处", "点击查看", "点击下载"),
    *("阅读更多", "查看更多", "阅读全文", "扫描二维码", "扫码关注", "关注我们", "关注公众号", "微信公众号", "官方微信"),
    *("立即注册", "免费注册", "立即登录", "忘记密码", "加入收藏", "设为首页", "分享到", "上一篇", "下一篇", "相关文章"),
    *("相关推荐", "热门推荐", "发表评论", "客服热线", "客服电话", "接受所有cookie", "使用cookie", "我们使用cookie"),
    *("订阅我们的", "立即订阅", "下载客户端", "下载app", "备案号", "icp备", "当前位置", "上一页", "下一页", "购物车"),
    *("帮助中心", "招聘信息", "联系方式", "新闻中心", "常见问题", "版权声明", "我的账户", "会员登录", "继续浏览"),
    *("请启用javascript", "浏览本页面", "首页 |", "| 首页", "| 登录", "登录 |", "| 注册", "注册 |"),
)


@cache
def furniture_phrases() -> Phrases:
    """The index of `FURNITURE`."""
    return index_phrases(fold_texts(list(FURNITURE)))
