"""Parallel sentences: forms with slots that are filled alike in both languages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from xmodel.corpus.sandbox.atlas import COUNTRIES
from xmodel.corpus.sandbox.draw import Draw, pairs, words
from xmodel.corpus.sandbox.lexicon import ANIMALS, COLOUR_WORDS, FOODS, HOBBIES, NUMBERS, OBJECTS, Noun
from xmodel.corpus.sandbox.tables import DAYS


class Word(NamedTuple):
    """One filling of a slot."""

    en: str
    zh: str


def _words(text: str) -> list[Word]:
    return [Word(*pair) for pair in pairs(text)]


_NAMES = _words(
    "Tom|汤姆,Anna|安娜,Peter|彼得,Mary|玛丽,Jack|杰克,Lucy|露西,David|大卫,Emma|艾玛,Li Ming|李明,Wang Fang|王芳,Zhang Wei|张伟,Chen Jing|陈静"
)
_COLOURS = [Word(*pair) for pair in COLOUR_WORDS]
_KINDS = words("cat dog cow sheep pig horse hen duck frog lion owl rabbit monkey panda bear")
_ANIMALS = [Word(a.en, a.zh) for a in ANIMALS if a.en in _KINDS]
_MOVES = _words(
    "sleeps|睡觉,plays|玩耍,rests|休息,sings|唱歌,eats|吃东西,hides|躲着,jumps|跳来跳去,waits|等着,cries|哭,dances|跳舞"
)
_PLACES = _words(
    "under the table|桌子下面,behind the door|门后面,in the garden|花园里,on the roof|屋顶上,by the river|河边,next to the house|房子旁边,"
    "in front of the school|学校前面,on the bed|床上,in the kitchen|厨房里,under the tree|树下,in the forest|森林里,on the chair|椅子上"
)
_SHOPS = _words("market|市场,shop|商店,station|火车站,airport|机场,school|学校,museum|博物馆")
_GOALS = _words(
    "school|学校,library|图书馆,hospital|医院,bank|银行,cinema|电影院,museum|博物馆,park|公园,market|市场,zoo|动物园,airport|机场"
)
_TIMES = _words("today|今天,yesterday|昨天,this morning|今天早上,last week|上个星期,last night|昨天晚上,last year|去年")
_PLANS = _words("today|今天,tomorrow|明天,this evening|今天晚上,next week|下个星期,next year|明年,now|现在")
_DAYS = [Word(en, zh) for en, zh in zip(DAYS["en"], DAYS["zh"], strict=True)]
_COUNTS = [Word(NUMBERS["en"][n], NUMBERS["zh"][n]) for n in range(2, 11)]
_HOBBIES = [Word(*pair) for pair in HOBBIES]
_FAMILY = _words(
    "father|爸爸,mother|妈妈,elder brother|哥哥,younger sister|妹妹,uncle|叔叔,aunt|阿姨,grandmother|奶奶,grandfather|爷爷,friend|朋友,neighbour|邻居"
)
_JOBS = _words(
    "doctor|医生,teacher|老师,farmer|农民,cook|厨师,pilot|飞行员,singer|歌手,writer|作家,painter|画家,judge|法官,sailor|水手,nurse|护士,postman|邮递员"
)
_QUALITIES = _words(
    "old|旧,new|新,big|大,small|小,clean|干净,dirty|脏,heavy|重,light|轻,cheap|便宜,expensive|贵,beautiful|漂亮,ugly|难看"
)
_VEHICLES = _words("bus|公共汽车,train|火车,car|汽车,boat|船,subway|地铁,taxi|出租车")
_DRINKS = _words("water|水,milk|牛奶,tea|茶,juice|果汁,soup|汤,coffee|咖啡")
_AGES = [Word(str(n), str(n)) for n in range(6, 80)]
_COUNTRIES = words("China Japan India France Germany Italy Spain Russia Egypt Kenya Canada Brazil Mexico Australia")
_LANDS = [Word(*country.name) for country in COUNTRIES if country.name[0] in _COUNTRIES]
_WISHES = _words(
    "read a book|看书,drink tea|喝茶,buy a hat|买帽子,write a letter|写信,cook rice|煮饭,go swimming|去游泳,play football|踢足球,"
    "learn English|学英语,watch a film|看电影,sweep the floor|扫地,plant flowers|种花,sing a song|唱歌"
)
_WEATHER = _words("rains|下雨,snows|下雪,is hot|很热,is cold|很冷,is windy|刮风,is sunny|天晴")
_TEMPERS = _words(
    "young|年轻,old|年老,tall|高高,happy|快乐,tired|疲倦,kind|善良,busy|忙碌,hungry|饥饿,clever|聪明,lazy|懒惰"
)
_DOINGS = _words(
    "reading|看书,sleeping|睡觉,singing|唱歌,eating|吃饭,painting|画画,writing a letter|写信,laughing|大笑,drinking tea|喝茶"
)


class Form(NamedTuple):
    """A sentence with numbered slots in both languages, and what may fill them."""

    en: str
    zh: str
    slots: tuple[Sequence[Word | Noun], ...]


FORMS = (
    Form("The {0.en} {1.en} {2.en} {3.en}.", "{0.zh}的{1.zh}在{3.zh}{2.zh}。", (_COLOURS, _ANIMALS, _MOVES, _PLACES)),
    Form("{0.en} bought {1.en} {2.many} at the {3.en} {4.en}.", "{4.zh}{0.zh}在{3.zh}买了{1.zh}{2.measure}{2.zh}。", (_NAMES, _COUNTS, FOODS + OBJECTS, _SHOPS, _TIMES)),
    Form("{0.en} likes {1.en}, but {2.en} likes {3.en}.", "{0.zh}喜欢{1.zh}，但是{2.zh}喜欢{3.zh}。", (_NAMES, _HOBBIES, _NAMES, _HOBBIES)),
    Form("The {1.en} of {0.en} is a {2.en}.", "{0.zh}的{1.zh}是{2.zh}。", (_NAMES, _FAMILY, _JOBS)),
    Form("The {0.en} is {1.en}, but the {2.en} is {3.en}.", "{0.zh}很{1.zh}，但是{2.zh}很{3.zh}。", (OBJECTS, _QUALITIES, OBJECTS, _QUALITIES)),
    Form("There are {0.en} {1.many} {2.en}.", "{2.zh}有{0.zh}{1.measure}{1.zh}。", (_COUNTS, OBJECTS + FOODS, _PLACES)),
    Form("{0.en} goes to the {1.en} by {2.en} on {3.en}.", "{0.zh}{3.zh}坐{2.zh}去{1.zh}。", (_NAMES, _GOALS, _VEHICLES, _DAYS)),
    Form("{0.en} gives {1.en} a {2.en} {3.en}.", "{0.zh}给{1.zh}一{3.measure}{2.zh}的{3.zh}。", (_NAMES, _NAMES, _COLOURS, OBJECTS)),
    Form("Where is the {0.en} {1.en}? It is {2.en}.", "{0.zh}的{1.zh}在哪里？它在{2.zh}。", (_COLOURS, OBJECTS, _PLACES)),
    Form("The {0.en} eats {1.many}, and the {2.en} drinks {3.en}.", "{0.zh}吃{1.zh}，{2.zh}喝{3.zh}。", (_ANIMALS, FOODS, _ANIMALS, _DRINKS)),
    Form("{0.en} is {1.en} years old and lives in {2.en}.", "{0.zh}{1.zh}岁，住在{2.zh}。", (_NAMES, _AGES, _LANDS)),
    Form("{0.en} wants to {1.en} {2.en}.", "{0.zh}{2.zh}想{1.zh}。", (_NAMES, _WISHES, _PLANS)),
    Form("If it {0.en} tomorrow, {1.en} will {2.en} with {3.en}.", "如果明天{0.zh}，{1.zh}就和{3.zh}一起{2.zh}。", (_WEATHER, _NAMES, _WISHES, _NAMES)),
    Form("The {0.en} {1.en} is {2.en} {3.en}.", "{0.zh}的{1.zh}正在{3.zh}{2.zh}。", (_TEMPERS, _JOBS, _DOINGS, _PLACES)),
)  # fmt: skip


def render(at: int, fillings: Sequence[int]) -> Word:
    """The English and the Chinese sentence."""
    form = FORMS[at]
    fill_ins = [slot[i] for slot, i in zip(form.slots, fillings, strict=True)]
    return Word(form.en.format(*fill_ins), form.zh.format(*fill_ins))


def _repeats(at: int, fillings: Sequence[int]) -> bool:
    fill_ins = [slot[i] for slot, i in zip(FORMS[at].slots, fillings, strict=True)]
    return len(set(fill_ins)) < len(fill_ins)


def fill(draw: Draw) -> tuple[int, list[int]]:
    """A form and the places of its fillings, as a combination of the draw's split; no word twice."""
    while True:
        at = draw.below(len(FORMS))
        fillings = [draw.below(len(slot)) for slot in FORMS[at].slots]
        if draw.admits("sentence", at, *fillings) and not _repeats(at, fillings):
            return at, fillings


def alternatives(draw: Draw) -> tuple[int, list[list[int]]]:
    """A form and four fillings of it: two groups of one or two slots each, in two fillings each.

    A grid of two by two has no middle: no sentence is nearer to the rest than the others, so the right one cannot be
    told by comparing the choices. And none of the four is in training text, so that it cannot be told by being new either.
    """
    while True:
        at, start = fill(draw)
        slots = FORMS[at].slots
        order = draw.shuffled(range(len(slots)))
        cut = 1 + (len(order) >= 3 and draw.chance(0.4))
        groups = order[:cut], order[cut : cut + 1 + (len(order) >= 4 and draw.chance(0.4))]

        def changed(group: list[int], start=start, slots=slots) -> list[int]:
            return [draw.below(len(slots[slot])) if slot in group else filling for slot, filling in enumerate(start)]

        def usable(fillings: list[int], group: list[int], at=at, start=start) -> bool:
            return (
                all(fillings[slot] != start[slot] for slot in group)
                and draw.unseen("sentence", at, *fillings)
                and not _repeats(at, fillings)
            )

        one = changed(groups[0])
        if not usable(one, groups[0]):
            continue
        for _ in range(64):
            other = changed(groups[1])
            both = [a if slot in groups[0] else b for slot, (a, b) in enumerate(zip(one, other, strict=True))]
            if usable(other, groups[1]) and usable(both, groups[1]):
                return at, [start, one, other, both]


def prompt(pair: Word, to: str) -> tuple[str, str]:
    """(prompt, target) of a translation to "en" or "zh"; the target begins with its space and ends before the newline."""
    if to == "zh":
        return f"English: {pair.en}\nChinese:", f" {pair.zh}"
    return f"Chinese: {pair.zh}\nEnglish:", f" {pair.en}"


def translations(draw: Draw) -> str:
    """Several translations in a row, in the very format of the questions."""
    to = draw.pick(("zh", "en", ""))
    return "\n\n".join(
        "".join(prompt(render(*fill(draw)), to or draw.pick(("zh", "en")))) for _ in range(draw.between(4, 7))
    )


_GLOSSARY: list[Word] = [
    *_COLOURS, *_ANIMALS, *_PLACES, *_GOALS, *_TIMES, *_PLANS, *_DAYS, *_HOBBIES, *_FAMILY, *_JOBS, *_QUALITIES, *_VEHICLES, *_DRINKS,
    *_LANDS, *_WISHES, *_TEMPERS, *_NAMES, *(Word(noun.en, noun.zh) for noun in OBJECTS + FOODS),
]  # fmt: skip


def glossary(draw: Draw) -> str:
    """Single words and their translations."""
    lines = []
    for word in draw.sample(_GLOSSARY, draw.between(7, 10)):
        lines.append(
            draw.pick(
                (
                    f'The Chinese for "{word.en}" is "{word.zh}".',
                    f"“{word.zh}”的英文是“{word.en}”。",
                    f"English: {word.en}\nChinese: {word.zh}",
                    f"Chinese: {word.zh}\nEnglish: {word.en}",
                )
            )
        )
    return "\n".join(lines)


def atlas(draw: Draw) -> str:
    """Countries and animals, a sentence in English and then the same in Chinese."""
    lines = []
    for place in draw.sample(COUNTRIES, 2):
        (name, name_zh), (capital, capital_zh), (continent, continent_zh), (language, language_zh) = place
        lines += [
            (f"The capital of {name} is {capital}.", f"{name_zh}的首都是{capital_zh}。"),
            (f"People in {name} speak {language}.", f"{name_zh}人说{language_zh}。"),
            (f"The country of {capital} is in {continent}.", f"{capital_zh}所在的国家在{continent_zh}。"),
        ]
    for animal in draw.sample(ANIMALS, 2):
        lines += [
            (f"The {animal.en} eats {animal.food[0]}.", f"{animal.zh}吃{animal.food[1]}。"),
            (f"The {animal.en} lives {animal.home[0]}.", f"{animal.zh}住在{animal.home[1]}。"),
        ]
    return "\n\n".join(
        f"English: {en}\nChinese: {zh}" if draw.chance(0.5) else f"Chinese: {zh}\nEnglish: {en}"
        for en, zh in draw.sample(lines, 5)
    )
