"""Labelled dirt, so that filters and deduplication can be scored by precision and recall."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from xmodel.corpus.sandbox.compose import PARTS, train_draw, write
from xmodel.corpus.sandbox.draw import Draw, phrases
from xmodel.corpus.sandbox.lexicon import CONTAINERS, FOODS, OBJECTS
from xmodel.corpus.sandbox.questions import leakable


class DirtClass(NamedTuple):
    """`share` among the dirt, in percent."""

    share: int
    what: str


DIRT_CLASSES = {
    "exact_duplicate": DirtClass(18, "an earlier document again, to the letter"),
    "near_duplicate_01": DirtClass(4, "an earlier document with 1 % of its characters edited"),
    "near_duplicate_02": DirtClass(4, "an earlier document with 2 % of its characters edited"),
    "near_duplicate_05": DirtClass(4, "an earlier document with 5 % of its characters edited"),
    "near_duplicate_10": DirtClass(4, "an earlier document with 10 % of its characters edited"),
    "near_duplicate_20": DirtClass(4, "an earlier document with 20 % of its characters edited"),
    "boilerplate": DirtClass(8, "menus, cookie notices, copyright lines: what stands around a text on the web"),
    "symbol_soup": DirtClass(8, "mostly symbols, no words"),
    "mojibake": DirtClass(8, "text decoded with the wrong character set"),
    "list_without_sentences": DirtClass(8, "a catalogue of things and numbers without a sentence"),
    "too_short": DirtClass(8, "fewer than 30 characters"),
    "wrong_language": DirtClass(8, "a text in a language that the part is not in"),
    "repeated_lines": DirtClass(8, "the same one or two lines many times"),
    "leaked_question": DirtClass(6, "a clean document with a test question and its answer inside"),
}
_ORDER = [name for name, dirt in DIRT_CLASSES.items() for _ in range(dirt.share)]


def class_of(ordinal: int) -> str:
    """The class of the n-th piece of dirt: in every hundred, each class as often as its share says."""
    return _ORDER[ordinal * 37 % 100]


def edited(draw: Draw, text: str, share: float) -> str:
    """`text` with about `share` of its characters replaced, dropped, doubled or swapped with the next."""
    characters = list(text)
    for _ in range(max(1, round(share * len(text)))):
        at = draw.below(len(characters) - 1)
        which = draw.below(4)
        if which == 0:
            characters[at] = draw.pick(text)
        elif which == 1:
            del characters[at]
        elif which == 2:
            characters.insert(at, draw.pick(text))
        else:
            characters[at], characters[at + 1] = characters[at + 1], characters[at]
    return "".join(characters)


_MENUS = {
    "en": phrases(
        "Home, About us, Contact, Log in, Sign up, Cart (0), Help, Search, Terms of use, Privacy policy, Sitemap, "
        "Careers, Newsletter, Press, Imprint, FAQ, Blog, Shop, My account, Downloads"
    ),
    "zh": phrases(
        "首页, 关于我们, 联系方式, 登录, 注册, 购物车（0）, 帮助中心, 搜索, 使用条款, 隐私政策, 网站地图, 招聘信息, 订阅, 新闻中心, 版权声明, 常见问题, 博客, 商城, 我的账户, 下载"
    ),
}
_NOTICES = {
    "en": (
        "This website uses cookies. Click Accept to continue.", "Copyright {} Example Ltd. All rights reserved.", "Share on social media | Print | Send by e-mail",
        "You are here: Home > News > Page {}", "JavaScript must be enabled to view this page.", "Subscribe to our newsletter and get {} % off!", "Previous page | Next page | Page {} of 99",
    ),
    "zh": (
        "本网站使用Cookie，点击“同意”继续浏览。", "版权所有 © {} 示例公司，保留所有权利。", "分享到：微信 | 微博 | 打印 | 邮件", "当前位置：首页 > 新闻 > 第{}页",
        "请启用JavaScript以查看本页面。", "立即订阅，享受{}%优惠！", "上一页 | 下一页 | 第{}页，共99页",
    ),
}  # fmt: skip


def _boilerplate(draw: Draw, part: str) -> str:
    lines = []
    for _ in range(draw.between(3, 5)):
        lines.append(" | ".join(draw.sample(_MENUS[draw.language], draw.between(6, 9))))
        lines.append(draw.pick(_NOTICES[draw.language]).format(draw.between(1, 99)))
    return "\n".join(lines)


_SYMBOLS = "#$%^&*()_+=-~`{}[]|\\<>/@!?;:★☆◆◇■□●○→←↑↓§¶†‡"


def _symbol_soup(draw: Draw, part: str) -> str:
    return "".join(draw.pick(_SYMBOLS) if draw.chance(0.85) else " " for _ in range(draw.between(200, 600)))


def _mojibake(draw: Draw, part: str) -> str:
    text = write(draw, part)
    if part == "en":  # plain ASCII survives any wrong decoding: dress it up first
        text = text.replace("'", "’").replace(", ", " – ").replace(" a ", " à ").replace("e ", "é ").replace(". ", "… ")
    encodings = ("cp1252", "latin-1") if part == "en" or draw.chance(0.5) else ("gb18030", "cp1252")
    wrong = text.encode("utf-8").decode(encodings[0], "replace")
    return wrong.encode("utf-8").decode(encodings[1], "replace") if draw.chance(0.5) else wrong


def _list_without_sentences(draw: Draw, part: str) -> str:
    lines = []
    for _ in range(draw.between(14, 28)):
        noun = draw.pick(OBJECTS + FOODS + CONTAINERS)
        word = noun.zh if draw.language == "zh" else noun.en
        lines.append(
            draw.pick(("- {}", "* {} {}", "{} / {}", "{} x{}", "• {}  #{}")).format(word, draw.between(1, 999))
        )
    return "\n".join(lines)


_SCRAPS = {"en": ("ok", "see above", "click here", "more...", "n/a", "page {}", "photo {}", "read more", "thanks!"), "zh": ("好的", "见上图", "点击这里", "更多……", "暂无", "第{}页", "图{}", "谢谢！")}  # fmt: skip


def _too_short(draw: Draw, part: str) -> str:
    return f"{draw.pick(_SCRAPS[draw.language])} {{}}".format(draw.between(1, 9999), draw.between(1, 9999))


_FOREIGN = {
    "fr": ("Le petit chat dort sous la {}.", "Nous mangeons une {} dans le jardin.", "Ma sœur cherche une {} depuis ce matin.", ["table", "chaise", "pomme", "lettre", "lampe", "clé", "tasse"]),
    "de": ("Der kleine Hund liegt unter dem {}.", "Wir haben gestern einen {} gesehen.", "Mein Bruder sucht seit Stunden den {}.", ["Tisch", "Stuhl", "Apfel", "Brief", "Schlüssel", "Garten", "Turm"]),
    "es": ("El gato pequeño duerme cerca de la {}.", "Ayer compramos una {} en el mercado.", "Mi hermana busca la {} desde ayer.", ["mesa", "silla", "manzana", "carta", "lámpara", "llave", "taza"]),
    "ru": ("Маленькая кошка спит, а рядом лежит {}.", "Вчера на рынке нам понравилась {}.", "У моей сестры есть новая {}.", ["книга", "лампа", "чашка", "груша", "шапка", "ручка", "карта"]),
    "ja": ("ねこが{}のそばでねています。", "きのう、いちばで{}をかいました。", "わたしのともだちは{}がすきです。", ["りんご", "つくえ", "いす", "かばん", "ぼうし", "とけい", "かぎ"]),
    "ko": ("작은 고양이가 {} 옆에서 자고 있습니다.", "어제 시장에서 {}를 샀습니다.", "제 친구는 {}를 좋아합니다.", ["사과", "의자", "모자", "시계", "지도", "배", "우표"]),
}  # fmt: skip


def _wrong_language(draw: Draw, part: str) -> str:
    """Half the time, in the one-language parts, the other language of the world; otherwise one from outside it."""
    if part != "parallel" and draw.chance(0.5):
        return write(_foreign_draw(draw, "zh" if part == "en" else "en"), "zh" if part == "en" else "en")
    *forms, words = _FOREIGN[draw.pick(("fr", "de", "es", "ru", "ja", "ko"))]
    return " ".join(draw.pick(forms).format(draw.pick(words)) for _ in range(draw.between(8, 16)))


def _foreign_draw(draw: Draw, part: str) -> Draw:
    other = train_draw(part)
    other.restart(draw.below(2**53), PARTS.index(part), draw.below(2**53))
    return other


def _repeated_lines(draw: Draw, part: str) -> str:
    lines = [line for line in write(draw, part).splitlines() if line]
    chosen = [line[:120] for line in draw.sample(lines, min(len(lines), draw.between(1, 2)))]
    return "\n".join(chosen * draw.between(6, 14))


def _leaked_question(draw: Draw, part: str, seed: int) -> str:
    return "\n\n".join((write(draw, part), draw.pick(leakable(seed, part)), write(draw, part)))


FRESH: dict[str, Callable[[Draw, str], str]] = {
    "boilerplate": _boilerplate,
    "symbol_soup": _symbol_soup,
    "mojibake": _mojibake,
    "list_without_sentences": _list_without_sentences,
    "too_short": _too_short,
    "wrong_language": _wrong_language,
    "repeated_lines": _repeated_lines,
}


def soil(draw: Draw, label: str, part: str, seed: int, original: str) -> str:
    """A piece of dirt. `original` is the clean document that copies are made from."""
    if label == "exact_duplicate":
        return original
    if label.startswith("near_duplicate_"):
        return edited(draw, original, int(label[-2:]) / 100)
    if label == "leaked_question":
        return _leaked_question(draw, part, seed)
    return FRESH[label](draw, part)
