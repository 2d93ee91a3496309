"""Heuristic filters: a table of rules over counts that one pass over the bytes delivers (measures.py).

A rule reads one setting of `recipe.settings.Filters` and compares it with the quantity of the same name: `max_...`
drops documents above it, `min_...` below it. The first rule of the table that a document fails is its reason. The
defaults are meant to keep whatever a person would keep: of 22 MB of English and Chinese technical documentation and
14 MB of Chinese prose they drop nothing but licence headers without a text in a Chinese source.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import pyarrow as pa

from xmodel.corpus.batches import mark, with_column
from xmodel.corpus.folding import fold_texts
from xmodel.corpus.measures import Measure, measure
from xmodel.corpus.search import Phrases, find, index_phrases
from xmodel.corpus.utf8 import byte_lengths
from xmodel.recipe.settings import Filters


@dataclass(frozen=True)
class Rule:
    """One row of the table of filters."""

    reason: str  # what the funnel calls it
    setting: str  # the field of `Filters` that holds the threshold, and the quantity that is compared with it
    unit: str
    purpose: str


RULES = (
    Rule("too_short", "min_characters", "characters", "navigation labels, empty pages: nothing to learn from"),
    Rule("too_long", "max_characters", "characters", "dumps and logs; keeps the memory of a batch bounded"),
    Rule("mojibake", "max_replacement_share", "of characters", "text that went through a wrong decoding"),
    Rule("symbols", "max_symbol_share", "of visible characters", "symbol soup, ASCII art, binary data"),
    Rule("digits", "max_digit_share", "of visible characters", "tables of numbers, telephone lists, hex dumps"),
    Rule("few_letters", "min_letter_share", "of visible characters", "what is left of pages without prose"),
    Rule("wrong_script", "max_foreign_share", "of letters", "text in neither Latin nor Han script"),
    Rule("wrong_language", "max_han_share", "of letters", "Chinese in a source stated to be English"),
    Rule("wrong_language", "min_han_share", "of letters", "English in a source stated to be Chinese"),
    Rule("repeated_lines", "max_repeated_line_share", "of visible characters", "one line over and over: logs, spam"),
    Rule("list", "max_list_share", "of lines", "catalogues, tag clouds: items without a sentence; needs ten lines"),
    Rule("boilerplate", "max_boilerplate_share", "of folded bytes", "pages that are all cookie banner and footer"),
)

# Furniture of web pages, looked for in the folded text, as whole words: case, width and spacing do not matter.
BOILERPLATE = (
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


LIST_LINES = 10  # fewer lines are no list


@cache
def boilerplate_phrases() -> Phrases:
    """The index of `BOILERPLATE`."""
    return index_phrases(fold_texts(list(BOILERPLATE)))


def quantities(batch: pa.RecordBatch, stated: Literal["en", "zh", "auto"]) -> dict[str, np.ndarray]:
    """What the rules compare with their settings, under the settings' names.

    Args:
        batch: D documents with the columns `text` and `folded`.
        stated: the language stated for their source.

    Returns:
        float64 [D] each: lengths in characters, shares between 0 and 1; and "han_share".
    """
    counts = measure(batch["text"]).T.astype(np.float64)
    letters = counts[[Measure.LATIN, Measure.HAN, Measure.KANA, Measure.FOREIGN]].sum(axis=0)
    characters = counts[: Measure.DAMAGED + 1].sum(axis=0)
    visible = np.maximum(characters - counts[Measure.SPACES], 1)
    lines = np.maximum(counts[Measure.LINES], 1)
    han = counts[Measure.HAN] / np.maximum(letters, 1)
    damaged = np.minimum(counts[Measure.DAMAGED] + counts[Measure.MISREAD], characters)  # one character may be both
    furniture, _ = find(batch["folded"], boilerplate_phrases())
    length = characters + counts[Measure.HAN]
    return {
        "han_share": han,
        "min_characters": length,
        "max_characters": length,
        "max_replacement_share": damaged / np.maximum(characters, 1),
        "max_foreign_share": (counts[Measure.KANA] + counts[Measure.FOREIGN]) / np.maximum(letters, 1),
        "max_han_share": han if stated == "en" else np.zeros_like(han),
        "min_han_share": han if stated == "zh" else np.ones_like(han),
        "max_symbol_share": counts[Measure.SYMBOLS] / visible,
        "max_digit_share": counts[Measure.DIGITS] / visible,
        "min_letter_share": letters / visible,
        "max_repeated_line_share": counts[Measure.REPEATED_CHARACTERS] / visible,
        "max_list_share": np.where(lines >= LIST_LINES, counts[Measure.ITEM_LINES] / lines, 0.0),
        "max_boilerplate_share": np.minimum(furniture / np.maximum(byte_lengths(batch["folded"]), 1), 1.0),
    }


def filtering(batch: pa.RecordBatch, settings: Filters, stated: Literal["en", "zh", "auto"]) -> pa.RecordBatch:
    """The stage: decides each document's `language` and marks those that fail a rule; needs the column `folded`."""
    values = quantities(batch, stated)
    which_D = np.full(len(batch), -1)
    for index, rule in reversed(list(enumerate(RULES))):
        limit = getattr(settings, rule.setting)
        fails_D = values[rule.setting] > limit if rule.setting.startswith("max_") else values[rule.setting] < limit
        which_D[fails_D] = index
    chinese_D = (
        values["han_share"] >= settings.chinese_share if stated == "auto" else np.full(len(batch), stated == "zh")
    )
    batch = with_column(batch, "language", pa.array(np.where(chinese_D, "zh", "en"), pa.string()))
    return mark(batch, [rule.reason for rule in RULES], which_D)
