"""Little Python programs with what they print."""

from __future__ import annotations

from collections.abc import Callable

from xmodel.corpus.sandbox.draw import Draw
from xmodel.corpus.sandbox.families import two_addends
from xmodel.corpus.sandbox.lexicon import FOODS, OBJECTS

_NAMES = ["numbers", "values", "items", "prices", "marks"]
_LETTERS = ["a", "b", "n", "x", "y", "total"]


def _words(draw: Draw, k: int) -> list[str]:
    return [noun.en for noun in draw.sample(OBJECTS + FOODS, k)]


def _quoted(words: list[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


def _reduce(draw: Draw) -> tuple[str, str]:
    name, values = draw.pick(_NAMES), [draw.between(1, 60) for _ in range(draw.between(3, 5))]
    function = draw.pick(("sum", "max", "min", "len", "sorted"))
    result = {"sum": sum, "max": max, "min": min, "len": len, "sorted": sorted}[function](values)
    return f"{name} = {values}\nprint({function}({name}))", str(result)


def _loop(draw: Draw) -> tuple[str, str]:
    start, count, step = draw.between(0, 9), draw.between(3, 5), draw.between(1, 5)
    variable = draw.pick(_LETTERS)
    stop = start + count * step
    return f"for {variable} in range({start}, {stop}, {step}):\n    print({variable})", "\n".join(
        map(str, range(start, stop, step))
    )


def _add(draw: Draw) -> tuple[str, str]:
    a, b = two_addends(draw)
    return f"def add(a, b):\n    return a + b\n\n\nprint(add({a}, {b}))", str(a + b)


def _double(draw: Draw) -> tuple[str, str]:
    name, values = draw.pick(_NAMES), [draw.between(1, 30) for _ in range(draw.between(3, 4))]
    return f"{name} = {values}\nprint([2 * x for x in {name}])", str([2 * x for x in values])


def _text(draw: Draw) -> tuple[str, str]:
    (word,) = _words(draw, 1)
    code, result = draw.pick(
        (
            ("print(word.upper())", word.upper()),
            ("print(len(word))", str(len(word))),
            ("print(word[0])", word[0]),
            ("print(word[::-1])", word[::-1]),
            ("print(word + word)", word + word),
            ('print(word.startswith("b"))', str(word.startswith("b"))),
        )
    )
    return f'word = "{word}"\n{code}', result


def _condition(draw: Draw) -> tuple[str, str]:
    variable, value, limit = draw.pick(_LETTERS), draw.between(0, 99), draw.between(10, 90)
    return (
        f'{variable} = {value}\nif {variable} > {limit}:\n    print("big")\nelse:\n    print("small")',
        "big" if value > limit else "small",
    )


def _lookup(draw: Draw) -> tuple[str, str]:
    keys = _words(draw, 3)
    prices = [draw.between(1, 50) for _ in keys]
    at = draw.below(3)
    table = ", ".join(f'"{key}": {price}' for key, price in zip(keys, prices, strict=True))
    return f'price = {{{table}}}\nprint(price["{keys[at]}"])', str(prices[at])


def _join(draw: Draw) -> tuple[str, str]:
    words = _words(draw, 3)
    code, result = draw.pick(
        (
            ('print(", ".join(words))', ", ".join(words)),
            ("print(words[1])", words[1]),
            ("print(sorted(words))", str(sorted(words))),
        )
    )
    return f"words = {_quoted(words)}\n{code}", result


def _countdown(draw: Draw) -> tuple[str, str]:
    variable, start = draw.pick(_LETTERS), draw.between(3, 5)
    return (
        f'{variable} = {start}\nwhile {variable} > 0:\n    print({variable})\n    {variable} = {variable} - 1\nprint("go")',
        "\n".join([*map(str, range(start, 0, -1)), "go"]),
    )


PROGRAMS: tuple[Callable[[Draw], tuple[str, str]], ...] = (
    _reduce,
    _loop,
    _add,
    _double,
    _text,
    _condition,
    _lookup,
    _join,
    _countdown,
)

_FRAMES = {
    "en": (
        "Here is a small Python program.\n\n{}\n\nThis is what it prints:\n\n{}",
        "{n} writes this program:\n\n{}\n\nThe output is:\n\n{}",
        "What does this code print?\n\n{}\n\nIt prints this:\n\n{}",
        "{n} runs a few lines of Python.\n\n{}\n\nOn the screen stands:\n\n{}",
        "Let us look at an example.\n\n{}\n\nThe computer answers {n} with:\n\n{}",
    ),
    "zh": (
        "这是一个小小的Python程序。\n\n{}\n\n它会输出：\n\n{}",
        "{n}写了这个程序：\n\n{}\n\n运行的结果是：\n\n{}",
        "下面的代码会输出什么？\n\n{}\n\n它会输出：\n\n{}",
        "{n}运行了几行Python代码。\n\n{}\n\n屏幕上显示：\n\n{}",
        "我们来看一个程序的例子。\n\n{}\n\n电脑告诉{n}：\n\n{}",
    ),
}


def snippet(draw: Draw) -> str:
    """A program, its output, and a sentence around them in the draw's language."""
    code, output = draw.pick(PROGRAMS)(draw)
    return draw.pick(_FRAMES[draw.language]).format(code, output, n=draw.person().name)
