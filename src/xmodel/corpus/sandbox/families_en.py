"""The English exercises."""

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
from xmodel.corpus.sandbox.lexicon import (
    ANIMALS,
    COLOUR_WORDS,
    CONTAINERS,
    FOODS,
    HOBBIES,
    LEGS,
    OBJECTS,
    ROOMS,
    with_article,
)
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

END = " {}."
ROOM_NAMES = [room for room, _ in ROOMS]
HOBBY_NAMES = [hobby for hobby, _ in HOBBIES]
COLOUR_NAMES = [colour for colour, _ in COLOUR_WORDS]
EVENTS = ["party", "concert", "race", "test", "wedding", "dance", "meeting", "football match", "picnic", "school trip"]


def _ask(rows: list[Row], *questions: str) -> Family:
    return association(rows, END, [f"Question: {question}\nAnswer:" for question in questions])


def _tell(rows: list[Row], *beginnings: str) -> Family:
    return association(rows, END, beginnings)


def question(passage: str, asked: str) -> str:
    return f"{passage}\nQuestion: {asked}\nAnswer:" if passage else f"Question: {asked}\nAnswer:"


def _of(values: list[str], form: str) -> list[str]:
    return [form.format(value) for value in values]


# ---- reading: the answer stands in the passage, and so do the wrong choices


def _listed(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def reading_owners(draw: Draw, count: int = 4) -> Item:
    """So many people, so many things; who has what?"""
    people = draw.people(count)
    verb, ask, things = draw.pick(_OWNERS)
    pool = [f"{person.name} {verb} {thing}." for person, thing in zip(people, draw.sample(things, count), strict=True)]
    at = draw.below(count)
    name = people[at].name
    choices = [f" {name} {sentence.split(' ', 1)[1]}" for sentence in pool]
    return Item(question(" ".join(pool), ask.format(name)), choices[at], choices)


_OWNERS = [
    ("has", "What does {} have?", [noun.a for noun in OBJECTS]),
    ("likes", "What does {} like?", HOBBY_NAMES),
    ("eats", "What does {} eat?", [noun.a for noun in FOODS]),
    ("wants", "What does {} want?", [noun.a for noun in OBJECTS]),
    ("is in the", "Where is {}?", ROOM_NAMES),
]


def reading_places(draw: Draw, count: int = 4) -> Item:
    """Somebody puts things into containers; where is one of them?"""
    person = draw.person()
    things = draw.sample(OBJECTS, count)
    places = draw.sample(CONTAINERS, count)
    start = draw.pick(
        (f"{person.name} tidies up.", f"This is the room of {person.name}.", f"{person.name} hides some things.")
    )
    passage = " ".join(
        [start] + [f"The {thing.en} is in the {place.en}." for thing, place in zip(things, places, strict=True)]
    )
    at = draw.below(count)
    choices = [f" The {things[at].en} is in the {place.en}." for place in places]
    return Item(question(passage, f"Where is the {things[at].en}?"), choices[at], choices)


def reading_colours(draw: Draw, count: int = 3) -> Item:
    """Things of one person in different colours; what colour is one of them?"""
    person = draw.person()
    things, colours = draw.sample(OBJECTS, count), draw.sample(COLOUR_NAMES, count)
    has = [f"The {thing.en} of {person.name} is {colour}." for thing, colour in zip(things, colours, strict=True)]
    at = draw.below(count)
    choices = [f" The {things[at].en} of {person.name} is {colour}." for colour in colours]
    return Item(question(" ".join(has), f"What colour is the {things[at].en} of {person.name}?"), choices[at], choices)


def story_fetch(draw: Draw, count: int = 4) -> Item:
    """Cloze: things lie in different rooms, and somebody goes to get one of them."""
    person = draw.person()
    things, rooms = draw.sample(OBJECTS, count), draw.sample(ROOM_NAMES, count)
    lie = [f"the {thing.en} is in the {room}" for thing, room in zip(things, rooms, strict=True)]
    at = draw.below(count)
    text = f"{person.name} has lost some things. {_listed(lie).capitalize()}. {person.name} looks for the {things[at].en}, and the {things[at].en} is in the"
    return Item(text, END.format(rooms[at]), _of(rooms, END))


def story_gift(draw: Draw, count: int = 4) -> Item:
    """Cloze: people bring presents, and somebody says thanks for one of them."""
    host, *guests = draw.people(count + 1)
    gifts = [noun.a for noun in draw.sample(OBJECTS, count)]
    brings = [f"{guest.name} brought {gift}" for guest, gift in zip(guests, gifts, strict=True)]
    at = draw.below(count)
    text = f"It was the birthday of {host.name}. {_listed(brings)}. {host.name} was glad that {guests[at].name} brought"
    return Item(text, END.format(gifts[at]), _of(gifts, END))


READING = (reading_owners, reading_places, reading_colours, story_fetch, story_gift)


# ---- numbers, order, calendar


def order_numbers(draw: Draw) -> Item:
    a, b = two_numbers(draw)
    word = draw.pick(("larger", "smaller"))
    answer = max(a, b) if word == "larger" else min(a, b)
    asked = draw.pick((f"Which number is {word}, {a} or {b}?", f"Which of the numbers {a} and {b} is {word}?"))
    return Item(question("", asked), f" {answer}.", (f" {a}.", f" {b}."))


def order_things(draw: Draw) -> Item:
    scale, words = (SIZES["en"], ("bigger", "smaller")) if draw.chance(0.6) else (SPEEDS["en"], ("faster", "slower"))
    a, b = two_ranks(draw, scale, words[0])
    up = draw.below(2)
    answer = scale[min(a, b) if up else max(a, b)]
    name = draw.person().name
    asked = draw.pick(
        (
            f"Which is {words[up]}, {scale[a]} or {scale[b]}?",
            f"{name} thinks about {scale[a]} and {scale[b]}. Which is {words[up]}?",
        )
    )
    return Item(question("", asked), END.format(answer), (END.format(scale[a]), END.format(scale[b])))


def sums(draw: Draw) -> Item:
    a, b = two_addends(draw)
    person, noun = draw.person(), draw.pick(FOODS)
    name, he = person.name, person.he
    if draw.chance(0.5):
        asked = f"{name} has {a} {noun.many if a > 1 else noun.en} and gets {b} more. How many {noun.many} does {he} have now?"
        answer = a + b
    else:
        asked = f"{name} has {a + b} {noun.many} and eats {b}. How many {noun.many} does {he} have now?"
        answer = a
    return Item(question("", asked), END.format(answer), _of([str(n) for n in close_numbers(draw, answer)], END))


def days(draw: Draw) -> Item:
    at, shift, event = a_shift(draw, DAYS["en"], (-1, 1, 2), EVENTS)
    name, day = draw.person().name, DAYS["en"][at]
    words = {-1: "one day before", 1: "one day after", 2: "two days after"}[shift]
    asked = draw.pick(
        (
            f"{name} goes to a {event} {words} {day}. On which day is the {event}?",
            f"The {event} of {name} is {words} {day}. Which day is that?",
        )
    )
    return Item(question("", asked), END.format(DAYS["en"][(at + shift) % 7]), _of(DAYS["en"], END))


def months(draw: Draw) -> Item:
    at, shift, event = a_shift(draw, MONTHS["en"], (-1, 1), EVENTS)
    name, month = draw.person().name, MONTHS["en"][at]
    asked = f"{name} has a {event} in the month {'after' if shift > 0 else 'before'} {month}. Which month is that?"
    return Item(question("", asked), END.format(MONTHS["en"][(at + shift) % 12]), _of(MONTHS["en"], END))


_LEG_ROWS = [Row(with_article(a.en), f"{LEGS['en'][a.legs]} legs") for a in ANIMALS]
_CAPITALS = [Row(c.name[0], c.capital[0]) for c in COUNTRIES]
_CONTINENTS = [Row(c.name[0], f"in {c.continent[0]}") for c in COUNTRIES]
_LANGUAGES = [Row(c.name[0], c.language[0]) for c in COUNTRIES]
_GROUPS = [Row(cue, with_article(value)) for cue, value in animal_rows("group", "en")]

FACTS: dict[str, Family] = {
    "sound": _ask(animal_rows("sound", "en"), "{k} is {c}. What does {k} say?", "{n} has {c} called {k}. What sound does {k} make?"),
    "food": _ask(animal_rows("food", "en"), "{k} is {c}. What does {k} eat?", "{n} feeds {k}. {k} is {c}. What does {k} like to eat?"),
    "home": _ask(animal_rows("home", "en"), "{k} is {c}. Where does {k} live?", "{k} is {c} and wants to go home. Where is the home of {k}?"),
    "body plan": either(
        _ask(_LEG_ROWS, "{k} is {c}. How many legs does {k} have?", "{n} draws {c} called {k}. How many legs does {n} draw?"),
        _ask(_GROUPS, "{k} is {c}. What kind of animal is {k}?", "{n} sees {c} called {k}. To which group does {k} belong?"),
    ),
    "workplace": _ask(WORKPLACES["en"], "{n} is {c}. Where does {n} work?", "{o} knows {c} called {n}. Where does {n} work?"),
    "trade": _ask(TRADES["en"], "{n} is {c}. What does {n} do at work?", "{n} has become {c}. What does {he} do every day?"),
    "capital": _ask(_CAPITALS, "{n} lives in the capital of {c}. In which city does {n} live?", "{n} flies to {c} and visits the capital. Which city is that?"),
    "country": either(
        _ask(_CONTINENTS, "{n} was born in {c}. Where is {c}?", "{n} travels to {c}. On which continent is it?"),
        _ask(_LANGUAGES, "{n} grew up in {c}. Which language does {n} speak?", "{n} moves to {c}. Which language does {he} learn?"),
    ),
    "use": _ask([Row(with_article(c), v) for c, v in USES["en"]], "A {t} is {c}. What can you do with a {t}?", "{n} has a {t}. The {t} is {c}. What can {he} do with it?"),
    "colour": _ask(COLOURS["en"], "{n} paints {c}. Which colour does {he} need?", "{n} has a coat with the colour of {c}. What colour is the coat?"),
    "material": _ask(MATERIALS["en"], "{n} has a new {c} at home. What is it made of?", "{o} asks {n} about the {c}. What is the {c} made of?"),
    "owners": reading_owners,
    "places": reading_places,
    "colours": reading_colours,
}  # fmt: skip

COMMONSENSE: dict[str, Family] = {
    "tool": _ask(TOOLS["en"], "{n} wants to {c}. What does {he} need?", "{o} helps {n} to {c}. What should {o} bring?"),
    "effect": _ask(EFFECTS["en"], "{n} {c}. What happened?", "Yesterday {n} {c}. What happened next?"),
    "errand": _ask(ERRANDS["en"], "{n} wants to {c}. Where should {he} go?", "{o} tells {n} where to {c}. Where does {n} go?"),
    "body": _ask(BODY["en"], "Which part of the body does {n} need to {c}?", "Which part of the body helps {n} to {c}?"),
    "vehicle": _ask(VEHICLES["en"], "{n} wants to {c}. What does {he} take?", "{n} and {o} plan to {c}. What do they take?"),
    "opposite": _ask(
        OPPOSITES["en"], "{n} says a word and {o} says the opposite. {n} says {c}. What does {o} say?", "{n} asks for the opposite of {c}. What is it?"
    ),
    "numbers": order_numbers,
    "sizes": order_things,
    "sums": sums,
    "days": days,
    "months": months,
}  # fmt: skip

CLOZE: dict[str, Family] = {
    "feeling": _tell(FEELINGS["en"], "{n} {c}. So {he} was very", "Think of {n}! {n} {c}, and {he} felt", "{o} saw that {n} {c}. {o} knew that {n} was"),
    "equipment": _tell(EQUIPMENT["en"], "{n} left the house. Because {c}, {he} took", "When {n} went out, {c}, so {o} gave {him}"),
    "tool": _tell(TOOLS["en"], "{n} wanted to {c}, so {he} went to get", "One morning {n} had to {c}. {o} came and brought {him}"),
    "sound": _tell(animal_rows("sound", "en"), "{n} has {c} called {k}. When {n} comes home, {k} says", "{k} was {c}. Every morning {k} woke {n} with a loud"),
    "workplace": _tell(WORKPLACES["en"], "{n} is {c}. Every day {he} works", "When {n} was small, {he} wanted to be {c} and work"),
    "errand": _tell(ERRANDS["en"], "{n} wanted to {c}. So {he} went to", "On Saturday {n} and {o} wanted to {c}. They walked to"),
    "fetch": story_fetch,
    "gift": story_gift,
}  # fmt: skip
