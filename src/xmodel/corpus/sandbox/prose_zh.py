"""Chinese prose: articles, lists of everyday knowledge, stories, dialogues, how-tos, worked numbers.

Every function writes one paragraph (60 to 250 characters) from a `Draw`.
"""

from __future__ import annotations

from collections.abc import Sequence

from xmodel.corpus.sandbox.atlas import COUNTRIES, ELEMENTS, PLANETS, UNITS
from xmodel.corpus.sandbox.draw import Draw
from xmodel.corpus.sandbox.families import two_addends, two_numbers, two_ranks
from xmodel.corpus.sandbox.families_zh import one
from xmodel.corpus.sandbox.lexicon import ANIMALS, COLOUR_WORDS, FOODS, HOBBIES, LEGS, OBJECTS, ROOMS
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
    SEASONS,
    SIZES,
    SPEEDS,
    TOOLS,
    TRADES,
    USES,
    VEHICLES,
    WORKPLACES,
    Row,
)  # fmt: skip


def animal(draw: Draw) -> str:
    kind = draw.pick(ANIMALS)
    name, a, (_, food), (_, home) = kind.zh, f"一{kind.measure}{kind.zh}", kind.food, kind.home
    legs = f"有{LEGS['zh'][kind.legs]}条腿" if kind.legs else "没有腿"
    sentences = [
        draw.pick(
            (
                f"{name}是{kind.group[1]}。",
                f"{name}属于{kind.group[1]}。",
                f"{kind.group[1]}有很多种，{name}就是其中一种。",
            )
        ),
        draw.pick((f"{name}{legs}。", f"{a}{legs}。")),
        draw.pick((f"{name}吃{food}。", f"{name}最喜欢吃的是{food}。", f"{food}是{name}的食物。")),
        draw.pick((f"{name}住在{home}。", f"{name}的家在{home}。", f"在{home}可以看到{name}。")),
        draw.pick((f"{name}的宝宝叫{kind.young[1]}。", f"{kind.young[1]}长大后就是{name}。")),
    ]
    if kind.sound[1]:
        sentences.append(
            draw.pick(
                (
                    f"{name}的叫声是{kind.sound[1]}。",
                    f"“{kind.sound[1]}！”{name}叫了起来。",
                    f"{name}会{kind.sound[1]}叫。",
                )
            )
        )
    if draw.chance(0.6):
        owner, pet = draw.person().name, draw.pet()
        sentences += draw.sample(
            (
                f"{owner}有{a}，名字叫{pet}。",
                f"{pet}是{a}，住在{home}。",
                f"{pet}每天都吃{food}。",
                f"{owner}很喜欢{pet}，因为{pet}很可爱。",
            ),
            2,
        )
    return "".join(sentences[:1] + draw.shuffled(sentences[1:]))


def country(draw: Draw) -> str:
    sentences = []
    for place in draw.sample(COUNTRIES, 3):
        name, capital, continent, language = (pair[1] for pair in place)
        facts = [
            draw.pick(
                (
                    f"{name}的首都是{capital}。",
                    f"{capital}是{name}的首都。",
                    f"{name}人都知道，自己国家的首都是{capital}。",
                )
            ),
            draw.pick(
                (
                    f"{name}在{continent}。",
                    f"{name}是{continent}的一个国家。",
                    f"{continent}有很多国家，{name}是其中之一。",
                )
            ),
            draw.pick(
                (f"{name}人说{language}。", f"{name}的语言是{language}。", f"在{name}，到处都能听到{language}。")
            ),
            draw.pick(
                (
                    f"{draw.person().name}住在{capital}，那里是{name}的首都。",
                    f"{draw.person().name}来自{name}，会说{language}。",
                )
            ),
        ]
        sentences += draw.sample(facts, 3)
    return "".join(sentences)


def science(draw: Draw) -> str:
    sentences = []
    if draw.chance(0.5):
        for element in draw.sample(ELEMENTS, 4):
            name = element.name[1]
            sentences.append(
                draw.pick(
                    (
                        f"{name}是一种化学元素，符号是{element.symbol}。",
                        f"{name}的符号是{element.symbol}，它是第{element.number}号元素。",
                        f"第{element.number}号元素是{name}。",
                        f"在元素表里，{element.symbol}就是{name}。",
                    )
                )
            )
    else:
        planets = PLANETS["zh"]
        at = draw.below(len(planets) - 1)
        sentences = [
            f"{planets[at][0]}{planets[at][1]}。",
            f"{planets[at + 1][0]}{planets[at + 1][1]}。",
            f"从太阳往外数，{planets[at][0]}后面是{planets[at + 1][0]}。",
            f"太阳有八颗行星，{planets[at][0]}是第{'一二三四五六七八'[at]}颗。",
        ]
    for big, count, small in draw.sample(UNITS["zh"], 3):
        sentences.append(
            draw.pick((f"{big}等于{count}{small}。", f"{big}有{count}{small}。", f"{count}{small}就是{big}。"))
        )
    return "".join(sentences)


def calendar(draw: Draw) -> str:
    day, month = draw.below(7), draw.below(12)
    season, warmth, sight = SEASONS["zh"][(month + 10) % 12 // 3]
    days, months = DAYS["zh"], MONTHS["zh"]
    sentences = [
        f"{days[day]}的后一天是{days[(day + 1) % 7]}。",
        f"{days[day]}的前一天是{days[day - 1]}。",
        f"{days[day]}的两天后是{days[(day + 2) % 7]}。",
        f"{months[month]}的后一个月是{months[(month + 1) % 12]}。",
        f"{months[month]}的前一个月是{months[month - 1]}。",
        f"在北方，{months[month]}是{season}。{season}天气很{warmth}，{sight}。",
        f"一年有十二个月，{months[month]}是其中的一个月。",
        f"一个星期有七天，{days[day]}是其中的一天。",
    ]
    return "".join(draw.sample(sentences, 5))


# What holds for everybody: table, then ways to say it.
_KNOWLEDGE: list[tuple[Sequence[Row], tuple[str, ...]]] = [
    (TOOLS["zh"], ("{c}需要{v}。", "想{c}的时候，要用{v}。", "人们用{v}来{c}。")),
    (ERRANDS["zh"], ("{c}要去{v}。", "想{c}的人会去{v}。", "大家去{v}{c}。")),
    (EFFECTS["zh"], ("有人{c}，{v}。", "有一个孩子{c}，结果{v}。")),
    (FEELINGS["zh"], ("一个人如果{c}，就会觉得{v}。", "有一个孩子{c}，觉得很{v}。")),
    (EQUIPMENT["zh"], ("如果{c}，就要带上{v}。", "有一天{c}，大家都带了{v}。")),
    (WORKPLACES["zh"], ("{c}在{v}工作。", "在{v}可以见到{c}。")),
    (TRADES["zh"], ("{c}的工作是{v}。", "{c}每天{v}。")),
    (COLOURS["zh"], ("{c}是{v}的。", "{c}的颜色是{v}。")),
    (MATERIALS["zh"], ("{c}是用{v}做的。", "做{c}要用{v}。")),
    (BODY["zh"], ("我们用{v}{c}。", "{v}可以帮我们{c}。")),
    (VEHICLES["zh"], ("想{c}，需要{v}。", "人们用{v}{c}。")),
    (OPPOSITES["zh"], ("“{c}”的反义词是“{v}”。", "和“{c}”相反的是“{v}”。", "不{c}，也许就是{v}。")),
    (USES["zh"], ("{c}可以用来{v}。", "有了{c}，人们就可以{v}。")),
]


def _known(draw: Draw, row: Row, templates: tuple[str, ...]) -> str:
    cue, value = row
    return draw.pick(templates).format(c=cue, v=value)


def knowledge(draw: Draw) -> str:
    """Plain statements about the everyday world, of one or of several kinds."""
    if draw.chance(0.3):
        rows, templates = draw.pick(_KNOWLEDGE)
        return "".join(_known(draw, row, templates) for row in draw.sample(rows, 6))
    return "".join(_known(draw, draw.pick(rows), templates) for rows, templates in draw.sample(_KNOWLEDGE, 6))


_BEATS: list[tuple[Sequence[Row], tuple[str, ...]]] = [
    (FEELINGS["zh"], ("有一天，{n}{c}，{he}觉得很{v}。", "{n}{c}，所以{he}很{v}。", "后来{n}{c}。“我觉得很{v}。”{n}说。")),
    (TOOLS["zh"], ("{n}想{c}，就去找{v}。", "“我想{c}。”{n}说。{o}给了{him}{v}。", "要{c}，{n}需要{v}，{o}正好有。")),
    (ERRANDS["zh"], ("早上，{n}想{c}，就走到了{v}。", "{n}和{o}一起去{v}{c}。")),
    (EQUIPMENT["zh"], ("那天{c}，所以{n}带上了{v}。", "因为{c}，{o}把{v}给了{n}。")),
    (EFFECTS["zh"], ("那天，{o}{c}，{v}。", "{n}{c}，{v}，大家都看见了。")),
    (VEHICLES["zh"], ("{n}有一个梦想，就是{c}，所以{he}去找{v}。", "他们一起用{v}{c}。")),
    (TRADES["zh"], ("{o}是一名{c}，{c}的工作是{v}。", "他们遇见了{o}。{o}是一名{c}，每天{v}。")),
    ([Row(f"一{a.measure}{a.zh}", a.sound[1]) for a in ANIMALS if a.sound[1]], ("在那里，他们看见{c}，名字叫{k}。{k}{v}叫。", "{n}有{c}，名字叫{k}。“{v}！”{k}叫道。")),
    ([Row(f"一{a.measure}{a.zh}", a.food[1]) for a in ANIMALS if a.legs], ("房子后面有{c}，叫{k}。{n}给了{k}一些{v}。", "{k}是{c}，它饿了，{n}拿来了{v}。")),
    ([Row(one(noun), noun.zh) for noun in OBJECTS], ("路上，{n}捡到了{c}。{n}把{v}给了{o}。", "{o}有{c}。{n}也想要，因为{he}喜欢{v}。")),
    ([Row(room, hobby) for (_, room), (_, hobby) in zip(ROOMS, HOBBIES * 2, strict=False)], ("在{c}里，{n}和{o}说起了{v}。", "{o}在{c}里等着，心里想着{v}。")),
]  # fmt: skip
_OPENINGS = (
    "{n}住在{town}，那里有一条小河。",
    "从前，{town}有一个孩子，名字叫{n}。",
    "这是{n}和{o}的故事，他们都是{town}人。",
    "很久以前，{n}和朋友{o}来到了{town}。",
    "{town}的天气{weather}。{n}很早就起床了。",
)
_ENDINGS = (
    "晚上，{n}回到{town}的家，睡得很香。",
    "最后，{n}谢谢{o}，他们成了好朋友。",
    "{n}把这些事都告诉了{o}，他们笑了很久。",
    "对{n}来说，这是很好的一天。",
    "从那以后，{n}和{o}每个{day}都见面。",
)


def story(draw: Draw) -> str:
    person, other = draw.people(2)
    town = draw.town()

    def tell(template: str, cue: str = "", value: str = "") -> str:
        pet = draw.pet()
        return template.format(
            n=person.name, he=person.he, him=person.him, o=other.name, k=pet, town=town, c=cue, v=value,
            weather=draw.pick(("很好", "很冷", "很热", "不太好", "很暖和")), day=draw.pick(DAYS["zh"]),
        )  # fmt: skip

    beats = []
    for rows, templates in draw.sample(_BEATS, draw.between(3, 5)):
        cue, value = draw.pick(rows)
        beats.append(tell(draw.pick(templates), cue, value))
    return "".join([tell(draw.pick(_OPENINGS)), *beats, tell(draw.pick(_ENDINGS))])


# A line and its reply, on a row of a table.
_TALK: list[tuple[Sequence[Row], tuple[tuple[str, str], ...]]] = [
    (TOOLS["zh"], (("我想{c}。", "那你需要{v}。"), ("{c}要用什么？", "要用{v}。"))),
    (ERRANDS["zh"], (("去哪里可以{c}？", "去{v}吧。"), ("我今天想{c}。", "我们一起去{v}吧。"))),
    (FEELINGS["zh"], (("我的朋友{c}。", "那他一定很{v}。"),)),
    (EFFECTS["zh"], (("昨天我{c}。", "结果是不是{v}？"),)),
    (VEHICLES["zh"], (("我怎样才能{c}？", "可以用{v}。"),)),
    (WORKPLACES["zh"], (("我叔叔是一名{c}。", "那他在{v}工作。"), ("{c}在哪里工作？", "{c}在{v}工作。"))),
    (TRADES["zh"], (("{c}是做什么的？", "{c}的工作是{v}。"),)),
    (COLOURS["zh"], (("{c}是什么颜色的？", "是{v}的。"),)),
    (MATERIALS["zh"], (("你的{c}是用什么做的？", "我的{c}是用{v}做的。"),)),
    (OPPOSITES["zh"], (("“{c}”的反义词是什么？", "是“{v}”。"),)),
    ([Row(c.name[1], c.capital[1]) for c in COUNTRIES], (("{c}的首都是哪里？", "{c}的首都是{v}。"), ("我要去{c}。", "那你一定要看看首都{v}。"))),
    ([Row(f"一{a.measure}{a.zh}", a.food[1]) for a in ANIMALS], (("我的宠物是{c}。它吃什么？", "给它吃{v}。"),)),
]  # fmt: skip
_GREETINGS = (
    ("你好，{o}！", "你好，{n}！你最近好吗？"),
    ("早上好，{o}。", "早上好，{n}。很高兴见到你。"),
    ("{o}，你有时间吗？", "当然有，{n}。"),
)
_FAREWELLS = (("谢谢你，{o}。", "不客气，{n}。"), ("{day}见！", "好的，{day}见，{n}！"), ("我知道了。", "再见，{n}！"))


def dialogue(draw: Draw) -> str:
    first, second = (person.name for person in draw.people(2))
    exchanges: list[tuple[str, ...]] = [draw.pick(_GREETINGS)]
    for rows, options in draw.sample(_TALK, 4):
        cue, value = draw.pick(rows)
        exchanges.append(tuple(line.format(c=cue, v=value) for line in draw.pick(options)))
    exchanges.append(draw.pick(_FAREWELLS))
    day = draw.pick(DAYS["zh"])
    return "\n".join(
        f"{first}：{say.format(o=second, n=first, day=day)}\n{second}：{reply.format(o=second, n=first, day=day)}"
        for say, reply in exchanges
    )


_HOWTOS = [
    ("泡茶", ("在水壶里装满水", "把水烧开", "把茶叶放进茶壶", "把热水倒在茶叶上", "等三分钟", "趁热喝茶")),
    ("种花", ("挖一个小坑", "把种子放进坑里", "用土把种子盖好", "浇一点水", "把花盆放在太阳下", "耐心地等它发芽")),
    ("烤面包", ("把面粉、水和盐放在一起", "用手揉面", "让面团休息一个小时", "把面团做成圆形", "放进热烤箱里", "等面包变凉")),
    ("洗手", ("打开水龙头", "把手弄湿", "拿一块肥皂", "搓手二十秒", "把泡沫冲干净", "用毛巾把手擦干")),
    ("寄信", ("准备好纸和笔", "把想说的话写下来", "把信放进信封", "在信封上写地址", "买一张邮票", "把信送到邮局")),
    ("做汤", ("把菜洗干净", "把菜切成小块", "在锅里烧水", "把菜放进锅里", "加一点盐", "煮半个小时")),
    ("过马路", ("在路边停下来", "看看左边", "看看右边", "等到没有车经过", "慢慢走过去，不要跑", "谢谢让路的司机")),
    ("做风筝", ("找两根细木条", "把木条绑成十字", "剪一张大纸", "把纸贴在木条上", "在中间绑一根长线", "等到刮风的日子")),
    ("喂宠物", ("弄清楚它吃什么", "把碗洗干净", "在碗里放食物", "在旁边放干净的水", "叫它过来", "让它安静地吃")),
    ("在图书馆找书", ("想好书的名字", "问图书管理员", "走到对的书架", "看书上的名字", "把书拿到前台", "两个星期以后还书")),
]  # fmt: skip


def howto(draw: Draw) -> str:
    task, steps = draw.pick(_HOWTOS)
    name = draw.person().name
    start = draw.pick(
        (
            f"怎样{task}？",
            f"{name}是这样学会{task}的。",
            f"{name}问怎样{task}。其实很容易。",
            f"你想学{task}吗？请看{name}的做法。",
        )
    )
    end = draw.pick(("这样就好了。", "现在你也会了。", f"{name}每个{draw.pick(DAYS['zh'])}都这样做。", "一点也不难。"))
    if draw.chance(0.3):
        return "\n".join([start, *(f"{number}. {step}。" for number, step in enumerate(steps, 1)), end])
    joined = [
        f"首先，{steps[0]}。",
        f"然后，{steps[1]}。",
        f"{draw.pick(('接着', '接下来'))}，{steps[2]}。",
        f"之后，{steps[3]}。",
        f"再往后，{steps[4]}。",
        f"最后，{steps[5]}。",
    ]
    return "".join([start, *joined, end])


def numbers(draw: Draw) -> str:
    """Worked arithmetic and comparisons."""
    sentences = []
    for _ in range(draw.between(6, 8)):
        which = draw.below(6)
        if which == 0:
            a, b = two_numbers(draw)
            small, large = min(a, b), max(a, b)
            sentences.append(
                draw.pick(
                    (
                        f"{large}比{small}大。",
                        f"{small}比{large}小。",
                        f"{a}和{b}，{large}更大。",
                        f"{a}和{b}，{small}更小。",
                    )
                )
            )
        elif which == 1:
            scale, up, down, name = (
                (SIZES["zh"], "大", "小", "bigger") if draw.chance(0.6) else (SPEEDS["zh"], "快", "慢", "faster")
            )
            a, b = two_ranks(draw, scale, name)
            sentences.append(
                f"{scale[max(a, b)]}比{scale[min(a, b)]}{up}。"
                if draw.chance(0.5)
                else f"{scale[min(a, b)]}比{scale[max(a, b)]}{down}。"
            )
        elif which == 2:
            a, b = two_addends(draw)
            sentences.append(
                draw.pick((f"{a} + {b} = {a + b}。", f"{a}加{b}等于{a + b}。", f"{a}再加上{b}，就是{a + b}。"))
            )
        elif which == 3:
            a, b = two_addends(draw)
            sentences.append(
                draw.pick((f"{a + b} - {b} = {a}。", f"{a + b}减{b}等于{a}。", f"从{a + b}里去掉{b}，还剩{a}。"))
            )
        elif which == 4:
            a, b = two_addends(draw)
            food, name = draw.pick(FOODS), draw.person().name
            sentences.append(
                f"{name}有{a}{food.measure}{food.zh}，又得到{b}{food.measure}。{a}加{b}等于{a + b}，所以{name}现在有{a + b}{food.measure}{food.zh}。"
            )
        else:
            n = draw.between(1, 96)
            sentences.append(
                draw.pick(
                    (f"{n}后面是{n + 1}。", f"接着数：{n}，{n + 1}，{n + 2}，{n + 3}。", f"{n + 1}前面的数是{n}。")
                )
            )
    return "".join(sentences)


def portrait(draw: Draw) -> str:
    """Invented people with their town, age, hobby, favourite colour and food."""
    parts = []
    for person in draw.people(2):
        town, (_, hobby), (_, colour), food = draw.town(), draw.pick(HOBBIES), draw.pick(COLOUR_WORDS), draw.pick(FOODS)
        trade, does = draw.pick(TRADES["zh"])
        name, he = person.name, person.he
        parts += [
            draw.pick((f"{name}住在{town}。", f"{name}是{town}人。")),
            draw.pick((f"{he}是一名{trade}，工作是{does}。", f"{name}是一名{trade}，每天{does}。")),
            *draw.sample(
                (
                    f"{name}喜欢{hobby}。",
                    f"{he}最喜欢的颜色是{colour}。",
                    f"{he}每天早上吃{one(food)}。",
                    f"{he}今年{draw.between(18, 80)}岁。",
                ),
                2,
            ),
        ]
    return "".join(parts)
