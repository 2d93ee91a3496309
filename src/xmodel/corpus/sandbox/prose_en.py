"""English prose: articles, lists of everyday knowledge, stories, dialogues, how-tos, worked numbers.

Every function writes one paragraph (150 to 500 characters) from a `Draw`.
"""

from __future__ import annotations

from collections.abc import Sequence

from xmodel.corpus.sandbox.atlas import COUNTRIES, ELEMENTS, PLANETS, UNITS
from xmodel.corpus.sandbox.draw import Draw
from xmodel.corpus.sandbox.families import two_addends, two_numbers, two_ranks
from xmodel.corpus.sandbox.lexicon import (
    ANIMALS,
    COLOUR_WORDS,
    FOODS,
    HOBBIES,
    LEGS,
    NUMBERS,
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


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def animal(draw: Draw) -> str:
    kind = draw.pick(ANIMALS)
    a, many = with_article(kind.en), kind.many
    group = with_article(kind.group[0])
    sentences = [
        draw.pick(
            (
                f"{_capital(a)} is {group}.",
                f"The {kind.en} is {group}.",
                f"{_capital(many)} belong to the group of the {kind.group[0]}s.".replace("fishs", "fish"),
            )
        ),
        draw.pick(
            (
                f"{_capital(a)} has {LEGS['en'][kind.legs]} legs.",
                f"{_capital(a)} walks on {LEGS['en'][kind.legs]} legs."
                if kind.legs
                else f"{_capital(many)} have no legs at all.",
            )
        ),
        draw.pick(
            (
                f"{_capital(many)} eat {kind.food[0]}.",
                f"What {many} like to eat most is {kind.food[0]}.",
                f"{_capital(a)} lives on {kind.food[0]}.",
            )
        ),
        draw.pick(
            (
                f"{_capital(a)} lives {kind.home[0]}.",
                f"You find {many} {kind.home[0]}.",
                f"{_capital(a)} is at home {kind.home[0]}.",
            )
        ),
        draw.pick(
            (
                f"The young {kind.en} is called {with_article(kind.young[0])}.",
                f"The young of {a} is {with_article(kind.young[0])}.",
            )
        ),
    ]
    if kind.sound[0]:
        sentences.append(
            draw.pick(
                (
                    f"{_capital(a)} says {kind.sound[0]}.",
                    f"The sound of {a} is {kind.sound[0]}.",
                    f'"{_capital(kind.sound[0])}!" says the {kind.en}.',
                )
            )
        )
    if draw.chance(0.6):
        owner, pet = draw.person(), draw.pet()
        sentences += draw.sample(
            (
                f"{owner.name} has {a} called {pet}.",
                f"{pet} is {a} that lives {kind.home[0]}.",
                f"{pet}, the {kind.en}, eats {kind.food[0]} every day.",
                f"{owner.name} likes {pet} because {pet} is a good {kind.en}.",
            ),
            2,
        )
    return " ".join(sentences[:1] + draw.shuffled(sentences[1:]))


def country(draw: Draw) -> str:
    sentences = []
    for place in draw.sample(COUNTRIES, 3):
        name, capital, continent, language = (pair[0] for pair in place)
        at = _capital(name)
        facts = [
            draw.pick(
                (
                    f"The capital of {name} is {capital}.",
                    f"{capital} is the capital of {name}.",
                    f"People in {name} are proud of their capital, {capital}.",
                )
            ),
            draw.pick(
                (
                    f"{at} is in {continent}.",
                    f"{at} is a country in {continent}.",
                    f"{at} is one of the countries in {continent}.",
                )
            ),
            draw.pick(
                (
                    f"People in {name} speak {language}.",
                    f"The language of {name} is {language}.",
                    f"In {name} you hear {language} everywhere.",
                )
            ),
            draw.pick(
                (
                    f"{draw.person().name} lives in {capital}, the capital of {name}.",
                    f"{draw.person().name} comes from {name} and speaks {language}.",
                )
            ),
        ]
        sentences += draw.sample(facts, 3)
    return " ".join(sentences)


def science(draw: Draw) -> str:
    sentences = []
    if draw.chance(0.5):
        for element in draw.sample(ELEMENTS, 4):
            name = element.name[0]
            sentences.append(
                draw.pick(
                    (
                        f"{_capital(name)} is a chemical element with the symbol {element.symbol}.",
                        f"The symbol of {name} is {element.symbol}, and its number is {element.number}.",
                        f"Element number {element.number} is {name}.",
                        f"{element.symbol} stands for {name} in the table of the elements.",
                    )
                )
            )
    else:
        planets = PLANETS["en"]
        at = draw.below(len(planets) - 1)
        sentences = [
            f"{planets[at][0]} {planets[at][1]}.",
            f"{planets[at + 1][0]} {planets[at + 1][1]}.",
            f"Seen from the sun, {planets[at + 1][0]} comes after {planets[at][0]}.",
            f"There are eight planets, and {planets[at][0]} is planet number {NUMBERS['en'][at + 1]}.",
        ]
    for big, count, small in draw.sample(UNITS["en"], 3):
        sentences.append(
            draw.pick(
                (
                    f"One {big} is {count} {small}.",
                    f"There are {count} {small} in {'an' if big == 'hour' else 'a'} {big}.",
                    f"{count} {small} make one {big}.",
                )
            )
        )
    return " ".join(sentences)


def calendar(draw: Draw) -> str:
    day, month = draw.below(7), draw.below(12)
    season, warmth, sight = SEASONS["en"][(month + 10) % 12 // 3]
    days, months = DAYS["en"], MONTHS["en"]
    sentences = [
        f"The day after {days[day]} is {days[(day + 1) % 7]}.",
        f"One day before {days[day]} comes {days[day - 1]}.",
        f"Two days after {days[day]} it is {days[(day + 2) % 7]}.",
        f"The month after {months[month]} is {months[(month + 1) % 12]}.",
        f"The month before {months[month]} is {months[month - 1]}.",
        f"{months[month]} is a month in {season} in the north. Then it is {warmth}, and {sight}.",
        f"{months[month]} is month number {NUMBERS['en'][month + 1]} of the year.",
        f"{days[day]} is day number {NUMBERS['en'][day + 1]} of the week.",
    ]
    return " ".join(draw.sample(sentences, 5))


# What holds for everybody: table, then ways to say it.
_KNOWLEDGE: list[tuple[Sequence[Row], tuple[str, ...]]] = [
    (TOOLS["en"], ("To {c}, you need {v}.", "If you want to {c}, take {v}.", "People use {v} to {c}.")),
    (ERRANDS["en"], ("To {c}, people go to {v}.", "If you want to {c}, go to {v}.", "One goes to {v} to {c}.")),
    (EFFECTS["en"], ("Somebody {c}. {v}.", "One day a child {c}. {v}, of course.")),
    (FEELINGS["en"], ("Somebody who {c} is {v}.", "A child {c} and felt {v}.")),
    (EQUIPMENT["en"], ("Whenever {c}, people took {v}.", "Once {c}, so everybody took {v}.")),
    (WORKPLACES["en"], ("{C} works {v}.", "You meet {c} {v}.")),
    (TRADES["en"], ("{C} {v}.", "What does {c} do? {C} {v}.")),
    (COLOURS["en"], ("The colour of {c} is {v}.", "{C} is {v}.")),
    (MATERIALS["en"], ("A {c} is made of {v}.", "One needs {v} to make a {c}.")),
    (BODY["en"], ("We use {v} to {c}.", "With {v} we can {c}.")),
    (VEHICLES["en"], ("To {c}, one takes {v}.", "People take {v} to {c}.")),
    (OPPOSITES["en"], ("The opposite of {c} is {v}.", "{C} is the opposite of {v}.", "What is not {c} may be {v}.")),
    (
        [Row(with_article(c), v) for c, v in USES["en"]],
        ("What can you do with {c}? You can {v}.", "When people have {c}, they {v}."),
    ),
]


def _known(draw: Draw, row: Row, templates: tuple[str, ...]) -> str:
    cue, value = row
    return draw.pick(templates).format(c=cue, v=value, C=_capital(cue))


def knowledge(draw: Draw) -> str:
    """Plain statements about the everyday world, of one or of several kinds."""
    if draw.chance(0.3):
        rows, templates = draw.pick(_KNOWLEDGE)
        return " ".join(_known(draw, row, templates) for row in draw.sample(rows, 5))
    return " ".join(_known(draw, draw.pick(rows), templates) for rows, templates in draw.sample(_KNOWLEDGE, 5))


_BEATS: list[tuple[Sequence[Row], tuple[str, ...]]] = [
    (FEELINGS["en"], ("One day {n} {c}. {n} felt very {v}.", "{n} {c}, so {he} was {v}.", 'Then {n} {c}. "I am {v}," said {n}.')),
    (TOOLS["en"], ("{n} wanted to {c}, so {he} looked for {v}.", '"I want to {c}," said {n}. {o} gave {him} {v}.', "To {c}, {n} needed {v}, and {o} had one to lend.")),
    (ERRANDS["en"], ("In the morning {n} wanted to {c}, so {he} walked to {v}.", "{n} and {o} went to {v} to {c}.")),
    (EQUIPMENT["en"], ("That day {c}, so {n} took {v}.", "Because {c}, {o} gave {n} {v}.")),
    (EFFECTS["en"], ("On that day {o} {c}. {v}.", "{n} {c}. {v}, and everybody saw it.")),
    (VEHICLES["en"], ("{n} had a dream: to {c}. So {he} looked for {v}.", "Together they took {v} to {c}.")),
    (TRADES["en"], ("{o} was {c}. You know that {c} {v}.", "They met {o}, {c}, and everybody knows that {c} {v}.")),
    ([Row(with_article(a.en), a.sound[0]) for a in ANIMALS if a.sound[0]], ("There they met {c} called {k}. {k} said {v}.", '{n} had {c} called {k}. "{V}!" said {k}.')),
    ([Row(with_article(a.en), a.food[0]) for a in ANIMALS if a.legs], ("Behind the house sat {c} called {k}. {n} gave {k} some {v}.", "{k}, {c}, was hungry. {n} brought {k} {v}.")),
    ([Row(noun.a, noun.many) for noun in OBJECTS], ("On the way {n} found {c}. {n} gave the find to {o}.", "{o} had {c}, and {n} wanted one too, because {he} liked {v}.")),
    ([Row(room, hobby) for (room, _), (hobby, _) in zip(ROOMS, HOBBIES * 2, strict=False)], ("In the {c} {n} talked with {o} about {v}.", "{o} waited in the {c} and thought about {v}.")),
]  # fmt: skip
_OPENINGS = (
    "{n} lived in {town}, a small town by the river.",
    "Once there was a child called {n} in the town of {town}.",
    "This is a story about {n} and {o}, two friends from {town}.",
    "Long ago, {n} came to {town} with {his} friend {o}.",
    "It was a {weather} day in {town}. {n} got up early.",
)
_ENDINGS = (
    "In the evening {n} went home to {town} and slept well.",
    "At last {n} thanked {o}, and they were friends for ever.",
    "{n} told {o} everything, and they laughed a lot.",
    "That was a good day for {n}.",
    "From then on, {n} and {o} met every {day}.",
)


def story(draw: Draw) -> str:
    person, other = draw.people(2)
    town = draw.town()

    def tell(template: str, cue: str = "", value: str = "") -> str:
        pet = draw.pet()
        return template.format(
            n=person.name, he=person.he, him=person.him, his=person.his, o=other.name, k=pet, town=town, c=cue, v=value, V=_capital(value),
            weather=draw.pick(("sunny", "rainy", "cold", "windy", "warm")), day=draw.pick(DAYS["en"]),
        )  # fmt: skip

    beats = []
    for rows, templates in draw.sample(_BEATS, draw.between(3, 5)):
        cue, value = draw.pick(rows)
        beats.append(tell(draw.pick(templates), cue, value))
    return " ".join([tell(draw.pick(_OPENINGS)), *beats, tell(draw.pick(_ENDINGS))])


# A line and its reply, on a row of a table.
_TALK: list[tuple[Sequence[Row], tuple[tuple[str, str], ...]]] = [
    (TOOLS["en"], (("I want to {c}.", "Then you need {v}."), ("What do I need to {c}?", "You need {v}."))),
    (ERRANDS["en"], (("Where can I {c}?", "Go to {v}."), ("I want to {c} today.", "Let us go to {v} together."))),
    (FEELINGS["en"], (("A friend of mine {c}.", "Oh, your friend must be {v}."),)),
    (EFFECTS["en"], (("Yesterday I {c}.", "And what happened? {v}?"),)),
    (VEHICLES["en"], (("How can I {c}?", "Take {v}."),)),
    (WORKPLACES["en"], (("My uncle is {c}.", "So he works {v}."), ("Where does {c} work?", "{C} works {v}."))),
    (TRADES["en"], (("What does {c} do?", "{C} {v}."),)),
    (COLOURS["en"], (("What colour is {c}?", "It is {v}."),)),
    (MATERIALS["en"], (("What is your {c} made of?", "My {c} is made of {v}."),)),
    (OPPOSITES["en"], (("What is the opposite of {c}?", "The opposite of {c} is {v}."),)),
    ([Row(c.name[0], c.capital[0]) for c in COUNTRIES], (("What is the capital of {c}?", "The capital of {c} is {v}."), ("I am going to {c}.", "Then you must see {v}, the capital."))),
    ([Row(with_article(a.en), a.food[0]) for a in ANIMALS], (("My pet is {c}. What does it eat?", "Give it {v}."),)),
]  # fmt: skip
_GREETINGS = (
    ("Hello, {o}!", "Hello, {n}! How are you?"),
    ("Good morning, {o}.", "Good morning, {n}. Nice to see you."),
    ("Hi {o}, do you have time?", "Of course, {n}."),
)
_FAREWELLS = (
    ("Thank you, {o}.", "You are welcome, {n}."),
    ("See you on {day}!", "See you on {day}, {n}!"),
    ("That is good to know.", "Goodbye, {n}!"),
)


def dialogue(draw: Draw) -> str:
    one, two = (person.name for person in draw.people(2))
    exchanges: list[tuple[str, ...]] = [draw.pick(_GREETINGS)]
    for rows, options in draw.sample(_TALK, 3):
        cue, value = draw.pick(rows)
        exchanges.append(tuple(line.format(c=cue, v=value, C=_capital(cue)) for line in draw.pick(options)))
    exchanges.append(draw.pick(_FAREWELLS))
    day = draw.pick(DAYS["en"])
    return "\n".join(
        f"{one}: {say.format(o=two, n=one, day=day)}\n{two}: {reply.format(o=two, n=one, day=day)}"
        for say, reply in exchanges
    )


_HOWTOS = [
    ("make tea", ("fill the kettle with water", "boil the water", "put the tea into the pot", "pour the hot water over the tea", "wait three minutes", "drink the tea while it is warm")),
    ("plant a seed", ("dig a small hole", "put the seed into the hole", "cover it with soil", "give it some water", "put the pot in the sun", "wait until it grows")),
    ("bake bread", ("mix flour, water and salt", "knead the dough with your hands", "let the dough rest for an hour", "form a round loaf", "put it into the hot oven", "let the bread cool down")),
    ("wash your hands", ("open the tap", "make your hands wet", "take some soap", "rub your hands for twenty seconds", "rinse off the foam", "dry your hands with a towel")),
    ("send a letter", ("take paper and a pen", "write down your news", "put the letter into an envelope", "write the address on it", "buy a stamp", "bring it to the post office")),
    ("make soup", ("wash the vegetables", "cut them into small pieces", "boil water in a pot", "put the vegetables into the pot", "add some salt", "cook it for half an hour")),
    ("cross the street", ("stop at the edge of the road", "look to the left", "look to the right", "wait until no car is coming", "walk across without running", "thank the driver who waited")),
    ("build a kite", ("take two thin sticks", "tie them into a cross", "cut a big sheet of paper", "glue the paper onto the sticks", "tie a long string to the middle", "wait for a windy day")),
    ("feed a pet", ("find out what the animal eats", "wash the bowl", "fill the bowl with food", "put fresh water beside it", "call the animal", "leave it alone while it eats")),
    ("find a book in the library", ("think of the title", "ask the librarian", "go to the right shelf", "read the names on the books", "take the book to the desk", "bring it back after two weeks")),
]  # fmt: skip


def howto(draw: Draw) -> str:
    task, steps = draw.pick(_HOWTOS)
    name = draw.person().name
    start = draw.pick(
        (
            f"How to {task}.",
            f"This is how {name} learned to {task}.",
            f"{name} asks how to {task}. It is easy.",
            f"Do you want to {task}? Do it like {name}.",
        )
    )
    end = draw.pick(
        ("That is all.", "Now you can do it too.", f"{name} does it every {draw.pick(DAYS['en'])}.", "It is not hard.")
    )
    if draw.chance(0.3):
        return "\n".join([start, *(f"{number}. {_capital(step)}." for number, step in enumerate(steps, 1)), end])
    joined = [
        f"First, {steps[0]}.",
        f"Then {steps[1]}.",
        f"{draw.pick(('Next', 'After that'))}, {steps[2]}.",
        f"Now {steps[3]}.",
        f"Then {steps[4]}.",
        f"Finally, {steps[5]}.",
    ]
    return " ".join([start, *joined, end])


def numbers(draw: Draw) -> str:
    """Worked arithmetic and comparisons."""
    sentences = []
    for _ in range(draw.between(5, 7)):
        which = draw.below(6)
        if which == 0:
            a, b = two_numbers(draw)
            small, large = min(a, b), max(a, b)
            sentences.append(
                draw.pick(
                    (
                        f"{large} is larger than {small}.",
                        f"{small} is smaller than {large}.",
                        f"Of {a} and {b}, {large} is larger.",
                        f"Of {a} and {b}, {small} is smaller.",
                    )
                )
            )
        elif which == 1:
            scale, up, down = (
                (SIZES["en"], "bigger", "smaller") if draw.chance(0.6) else (SPEEDS["en"], "faster", "slower")
            )
            a, b = two_ranks(draw, scale, up)
            sentences.append(
                _capital(
                    f"{scale[max(a, b)]} is {up} than {scale[min(a, b)]}."
                    if draw.chance(0.5)
                    else f"{scale[min(a, b)]} is {down} than {scale[max(a, b)]}."
                )
            )
        elif which == 2:
            a, b = two_addends(draw)
            sentences.append(
                draw.pick(
                    (f"{a} + {b} = {a + b}.", f"{a} plus {b} is {a + b}.", f"If you add {b} to {a}, you get {a + b}.")
                )
            )
        elif which == 3:
            a, b = two_addends(draw)
            sentences.append(
                draw.pick(
                    (
                        f"{a + b} - {b} = {a}.",
                        f"{a + b} minus {b} is {a}.",
                        f"If you take {b} from {a + b}, {a} is left.",
                    )
                )
            )
        elif which == 4:
            a, b = two_addends(draw)
            food = draw.pick(FOODS)
            person = draw.person()
            sentences.append(
                f"{person.name} has {a} {food.many if a > 1 else food.en} and gets {b} more. {a} + {b} = {a + b}, so {person.he} has {a + b} {food.many} now."
            )
        else:
            n = draw.between(1, 96)
            sentences.append(
                draw.pick(
                    (
                        f"After {n} comes {n + 1}.",
                        f"Count on: {n}, {n + 1}, {n + 2}, {n + 3}.",
                        f"The number before {n + 1} is {n}.",
                    )
                )
            )
    return " ".join(sentences)


def portrait(draw: Draw) -> str:
    """Invented people with their town, age, hobby, favourite colour and food."""
    parts = []
    for person in draw.people(2):
        town, (hobby, _), (colour, _), food = draw.town(), draw.pick(HOBBIES), draw.pick(COLOUR_WORDS), draw.pick(FOODS)
        trade, does = draw.pick(TRADES["en"])
        name, his, he = person.name, person.his, _capital(person.he)
        parts += [
            draw.pick((f"{name} lives in {town}.", f"{name} comes from {town}.")),
            draw.pick((f"{he} is {trade}, so {person.he} {does}.", f"{name} is {trade}. At work {person.he} {does}.")),
            *draw.sample(
                (
                    f"{name} likes {hobby}.",
                    f"{_capital(his)} favourite colour is {colour}.",
                    f"{he} eats {food.a} every morning.",
                    f"{he} is {draw.between(18, 80)} years old.",
                ),
                2,
            ),
        ]
    return " ".join(parts)
