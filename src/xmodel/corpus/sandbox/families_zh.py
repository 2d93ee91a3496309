"""The Chinese exercises."""

from __future__ import annotations

from xmodel.corpus.sandbox.atlas import COUNTRIES
from xmodel.corpus.sandbox.draw import Draw
from xmodel.corpus.sandbox.families import (
    Family,
    Item,
    a_shift,
    animal_rows,
    association,
    close_numbers,
    either,
    two_addends,
    two_numbers,
    two_ranks,
)
from xmodel.corpus.sandbox.lexicon import ANIMALS, COLOUR_WORDS, CONTAINERS, FOODS, HOBBIES, LEGS, OBJECTS, ROOMS, Noun
from xmodel.corpus.sandbox.tables import (
    BODY,
    COLOURS,
    DAYS,
    EFFECTS,
    EQUIPMENT,
    ERRANDS,
    FEELINGS,
    MATERIALS,
    MONTHS,
    OPPOSITES,
    SIZES,
    SPEEDS,
    TOOLS,
    TRADES,
    USES,
    VEHICLES,
    WORKPLACES,
    Row,
)  # fmt: skip

END = "{}。"
ROOM_NAMES = [room for _, room in ROOMS]
HOBBY_NAMES = [hobby for _, hobby in HOBBIES]
COLOUR_NAMES = [colour for _, colour in COLOUR_WORDS]
EVENTS = ["生日会", "音乐会", "比赛", "考试", "婚礼", "舞会", "家长会", "足球赛", "野餐", "郊游"]


def one(noun: Noun) -> str:
    return f"一{noun.measure}{noun.zh}"


def _ask(rows: list[Row], *questions: str) -> Family:
    return association(rows, END, [f"问题：{question}\n答案：" for question in questions])


def _tell(rows: list[Row], *beginnings: str) -> Family:
    return association(rows, END, beginnings)


def question(passage: str, asked: str) -> str:
    return f"{passage}\n问题：{asked}\n答案：" if passage else f"问题：{asked}\n答案："


def _of(values: list[str], form: str = END) -> list[str]:
    return [form.format(value) for value in values]


# ---- reading: the answer stands in the passage, and so do the wrong choices


def reading_owners(draw: Draw, count: int = 4) -> Item:
    """So many people, so many things; who has what?"""
    people = draw.people(count)
    form, ask, things = draw.pick(_OWNERS)
    picked = draw.sample(things, count)
    passage = "".join(form.format(person.name, thing) for person, thing in zip(people, picked, strict=True))
    at = draw.below(count)
    choices = [form.format(people[at].name, thing) for thing in picked]
    return Item(question(passage, ask.format(people[at].name)), choices[at], choices)


_OWNERS = [
    ("{}有{}。", "{}有什么？", [one(noun) for noun in OBJECTS]),
    ("{}喜欢{}。", "{}喜欢什么？", HOBBY_NAMES),
    ("{}吃{}。", "{}吃什么？", [one(noun) for noun in FOODS]),
    ("{}想要{}。", "{}想要什么？", [one(noun) for noun in OBJECTS]),
    ("{}在{}里。", "{}在哪里？", ROOM_NAMES),
]


def reading_places(draw: Draw, count: int = 4) -> Item:
    """Somebody puts things into containers; where is one of them?"""
    person = draw.person()
    things = draw.sample(OBJECTS, count)
    places = draw.sample(CONTAINERS, count)
    start = draw.pick((f"{person.name}在整理东西。", f"这是{person.name}的房间。", f"{person.name}把东西藏了起来。"))
    passage = start + "".join(f"{thing.zh}在{place.zh}里。" for thing, place in zip(things, places, strict=True))
    at = draw.below(count)
    choices = [f"{things[at].zh}在{place.zh}里。" for place in places]
    return Item(question(passage, f"{things[at].zh}在哪里？"), choices[at], choices)


def reading_colours(draw: Draw, count: int = 3) -> Item:
    """Things of one person in different colours; what colour is one of them?"""
    person = draw.person()
    things, colours = draw.sample(OBJECTS, count), draw.sample(COLOUR_NAMES, count)
    passage = "".join(f"{person.name}的{thing.zh}是{colour}的。" for thing, colour in zip(things, colours, strict=True))
    at = draw.below(count)
    asked = f"{person.name}的{things[at].zh}"
    choices = [f"{asked}是{colour}的。" for colour in colours]
    return Item(question(passage, f"{asked}是什么颜色的？"), choices[at], choices)


def story_fetch(draw: Draw, count: int = 4) -> Item:
    """Cloze: things lie in different rooms, and somebody goes to get one of them."""
    person = draw.person()
    things, rooms = draw.sample(OBJECTS, count), draw.sample(ROOM_NAMES, count)
    lie = "，".join(f"{thing.zh}在{room}" for thing, room in zip(things, rooms, strict=True))
    at = draw.below(count)
    text = f"{person.name}找不到自己的东西了。{lie}。{person.name}要找{things[at].zh}，{things[at].zh}在"
    return Item(text, END.format(rooms[at]), _of(rooms))


def story_gift(draw: Draw, count: int = 4) -> Item:
    """Cloze: people bring presents, and somebody is glad about one of them."""
    host, *guests = draw.people(count + 1)
    gifts = [one(noun) for noun in draw.sample(OBJECTS, count)]
    brings = "，".join(f"{guest.name}送了{gift}" for guest, gift in zip(guests, gifts, strict=True))
    at = draw.below(count)
    text = f"今天是{host.name}的生日。{brings}。{host.name}很高兴，因为{guests[at].name}送了"
    return Item(text, END.format(gifts[at]), _of(gifts))


READING = (reading_owners, reading_places, reading_colours, story_fetch, story_gift)


# ---- numbers, order, calendar


def order_numbers(draw: Draw) -> Item:
    a, b = two_numbers(draw)
    word = draw.pick(("大", "小"))
    answer = max(a, b) if word == "大" else min(a, b)
    asked = draw.pick((f"{a}和{b}，哪个数更{word}？", f"在{a}和{b}这两个数里，哪个更{word}？"))
    return Item(question("", asked), f"{answer}。", (f"{a}。", f"{b}。"))


def order_things(draw: Draw) -> Item:
    scale, words, name = (SIZES["zh"], "大小", "bigger") if draw.chance(0.6) else (SPEEDS["zh"], "快慢", "faster")
    a, b = two_ranks(draw, scale, name)
    up = draw.below(2)
    answer = scale[min(a, b) if up else max(a, b)]
    person = draw.person().name
    asked = draw.pick(
        (f"{scale[a]}和{scale[b]}，哪个更{words[up]}？", f"{person}比较{scale[a]}和{scale[b]}。哪个更{words[up]}？")
    )
    return Item(question("", asked), END.format(answer), _of([scale[a], scale[b]]))


def sums(draw: Draw) -> Item:
    a, b = two_addends(draw)
    person, noun = draw.person(), draw.pick(FOODS)
    unit, name = f"{noun.measure}{noun.zh}", person.name
    if draw.chance(0.5):
        asked, answer = f"{name}有{a}{unit}，又得到{b}{noun.measure}。{name}现在有几{unit}？", a + b
    else:
        asked, answer = f"{name}有{a + b}{unit}，吃了{b}{noun.measure}。{name}现在有几{unit}？", a
    return Item(question("", asked), END.format(answer), _of([str(n) for n in close_numbers(draw, answer)]))


def days(draw: Draw) -> Item:
    at, shift, event = a_shift(draw, DAYS["zh"], (-1, 1, 2), EVENTS)
    name, day = draw.person().name, DAYS["zh"][at]
    words = {-1: "前一天", 1: "后一天", 2: "两天后"}[shift]
    asked = draw.pick(
        (f"{name}的{event}在{day}的{words}。那天是星期几？", f"{day}的{words}，{name}去参加{event}。{event}在哪一天？")
    )
    return Item(question("", asked), END.format(DAYS["zh"][(at + shift) % 7]), _of(DAYS["zh"]))


def months(draw: Draw) -> Item:
    at, shift, event = a_shift(draw, MONTHS["zh"], (-1, 1), EVENTS)
    name, month = draw.person().name, MONTHS["zh"][at]
    asked = f"{name}的{event}在{month}的{'后' if shift > 0 else '前'}一个月。那是几月？"
    return Item(question("", asked), END.format(MONTHS["zh"][(at + shift) % 12]), _of(MONTHS["zh"]))


_LEG_ROWS = [Row(f"一{a.measure}{a.zh}", f"{LEGS['zh'][a.legs]}条腿" if a.legs else "没有腿") for a in ANIMALS]
_CAPITALS = [Row(c.name[1], c.capital[1]) for c in COUNTRIES]
_CONTINENTS = [Row(c.name[1], c.continent[1]) for c in COUNTRIES]
_LANGUAGES = [Row(c.name[1], c.language[1]) for c in COUNTRIES]

FACTS: dict[str, Family] = {
    "sound": _ask(animal_rows("sound", "zh"), "{k}是{c}。{k}怎么叫？", "{n}有{c}，名字叫{k}。{k}会发出什么声音？"),
    "food": _ask(animal_rows("food", "zh"), "{k}是{c}。{k}吃什么？", "{n}喂{k}。{k}是{c}。{k}喜欢吃什么？"),
    "home": _ask(animal_rows("home", "zh"), "{k}是{c}。{k}住在哪里？", "{k}是{c}，它想回家。{k}的家在哪里？"),
    "body plan": either(
        _ask(_LEG_ROWS, "{k}是{c}。{k}有几条腿？", "{n}画了{c}，名字叫{k}。{k}有几条腿？"),
        _ask(animal_rows("group", "zh"), "{k}是{c}。{k}是哪一类动物？", "{n}看见了{c}，名字叫{k}。{k}属于哪一类？"),
    ),
    "workplace": _ask(WORKPLACES["zh"], "{n}是一名{c}。{n}在哪里工作？", "{o}认识一名{c}，叫{n}。{n}在哪里上班？"),
    "trade": _ask(TRADES["zh"], "{n}是一名{c}。{n}的工作是什么？", "{n}长大后当了{c}。{he}每天做什么？"),
    "capital": _ask(_CAPITALS, "{n}住在{c}的首都。{n}住在哪个城市？", "{n}坐飞机去{c}，要看看首都。{he}去的是哪个城市？"),
    "country": either(
        _ask(_CONTINENTS, "{n}出生在{c}。{c}在哪个洲？", "{n}去{c}旅行。{he}去的是哪个洲？"),
        _ask(_LANGUAGES, "{n}在{c}长大。{n}说什么语言？", "{n}搬到了{c}。{he}要学什么语言？"),
    ),
    "use": _ask(USES["zh"], "{t}是一种{c}。{t}可以用来做什么？", "{n}有{t}。{t}是一种{c}。{n}用它做什么？"),
    "colour": _ask(COLOURS["zh"], "{n}要画{c}。{he}需要什么颜色？", "{n}的外套和{c}的颜色一样。外套是什么颜色？"),
    "material": _ask(MATERIALS["zh"], "{n}家有新的{c}。它是用什么做的？", "{o}问{n}，{c}是用什么做的？"),
    "owners": reading_owners,
    "places": reading_places,
    "colours": reading_colours,
}  # fmt: skip

COMMONSENSE: dict[str, Family] = {
    "tool": _ask(TOOLS["zh"], "{n}想{c}。{he}需要什么？", "{o}帮{n}{c}。{o}应该带什么？"),
    "effect": _ask(EFFECTS["zh"], "{n}{c}。后来怎么样了？", "昨天{n}{c}。结果怎么样？"),
    "errand": _ask(ERRANDS["zh"], "{n}想{c}。{he}应该去哪里？", "{o}告诉{n}去哪里{c}。{n}去哪里？"),
    "body": _ask(BODY["zh"], "{n}要{c}，靠的是身体的哪个部分？", "身体的哪个部分能帮{n}{c}？"),
    "vehicle": _ask(VEHICLES["zh"], "{n}想{c}。{he}需要什么交通工具？", "{n}和{o}打算{c}。他们用什么交通工具？"),
    "opposite": _ask(OPPOSITES["zh"], "{n}说一个词，{o}说反义词。{n}说“{c}”。{o}说什么？", "{n}问“{c}”的反义词。答案是哪个字？"),
    "numbers": order_numbers,
    "sizes": order_things,
    "sums": sums,
    "days": days,
    "months": months,
}  # fmt: skip

CLOZE: dict[str, Family] = {
    "feeling": _tell(FEELINGS["zh"], "{n}{c}，所以{he}觉得很", "{o}知道{n}{c}。{o}说，{n}一定很"),
    "equipment": _tell(EQUIPMENT["zh"], "{n}要出门。因为{c}，所以{he}带上了", "{n}出门的时候，{c}，{o}给了{him}"),
    "tool": _tell(TOOLS["zh"], "{n}想{c}，所以{he}去拿", "有一天早上，{n}要{c}，{o}给{him}拿来了"),
    "sound": _tell(animal_rows("sound", "zh"), "{n}有{c}，名字叫{k}。{n}回家的时候，{k}叫", "{k}是{c}。每天早上，{k}叫醒{n}的声音是"),
    "workplace": _tell(WORKPLACES["zh"], "{n}是一名{c}。每天{he}工作的地方是", "{n}小时候想当{c}，工作的地方是"),
    "errand": _tell(ERRANDS["zh"], "{n}想{c}，所以{he}去了", "星期六，{n}和{o}想{c}。他们走到了"),
    "fetch": story_fetch,
    "gift": story_gift,
}  # fmt: skip
