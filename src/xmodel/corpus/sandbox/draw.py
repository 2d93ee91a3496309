"""Chance, and the one rule that keeps the questions out of the training text.

Everything the sandbox says is drawn through a `Draw`. A draw belongs to one of three *splits*: "train" (documents),
"dev" and "test" (questions). Names of people, pets, towns and invented things are dealt out to the splits once and for
all, by a hash of the name; combinations without a name in them (two numbers, two sizes, the content of a sentence) are
dealt out by a hash of the combination, which `Draw.admits` tells. The deal does not depend on any seed, so questions of
any seed are unseen in training text of any seed.

Only `random()` and `seed(int)` of the standard generator are used: their streams are the same in every Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple, TypeVar
from zlib import crc32

T = TypeVar("T")
SPLITS = ("train", "dev", "test")


def split_of(key: str) -> str:
    """The split that a name or a combination belongs to: 1 in 16 to dev, 2 in 16 to test, the rest to train."""
    bucket = (crc32(key.encode()) * 0x9E3779B1 & 0xFFFFFFFF) >> 28  # mixed: CRC alone is linear in the digits of a key
    return "dev" if bucket == 0 else "test" if bucket <= 2 else "train"


class Person(NamedTuple):
    """A name with its pronouns (the Chinese ones have no cases: `he` and `him` are 他 or 她)."""

    name: str
    he: str
    him: str
    his: str


def _deal(names: Sequence[T], key: Callable[[T], str] = str) -> dict[str, tuple[T, ...]]:
    return {split: tuple(name for name in names if split_of(key(name)) == split) for split in SPLITS}


def words(text: str) -> list[str]:
    """The words of a text: how a list of words is written in this package."""
    return text.split()


def phrases(text: str) -> list[str]:
    """The parts of a text between commas."""
    return [phrase.strip() for phrase in text.split(",")]


def pairs(text: str) -> list[tuple[str, str]]:
    """Comma-separated entries of an English phrase, a bar and a Chinese one."""
    return [(en, zh) for en, zh in (phrase.split("|") for phrase in phrases(text))]


def _people_en() -> list[Person]:
    starts = "Ba Be Bo Da De Do Du Fa Fe Ga Ja Jo Ka Ke Ki Ko La Le Li Lo Lu Ma Me Mi Mo Na Ne Ni No Pa Pe Ra Re Ri Ro"
    people = []
    for start in words(starts + " Sa Se So Ta Te Ti To Va Vi Za Zo"):
        people += [Person(start + end, "he", "him", "his") for end in words("ben do dan ko ro ton vo lo")]
        people += [Person(start + end, "she", "her", "her") for end in words("la na ra sa mi lia via nia")]
    return people


def _people_zh() -> list[Person]:
    people = []
    for family in "王李张刘陈杨赵黄周吴徐孙马朱胡林郭何高罗":
        people += [Person(family + given, "他", "他", "他的") for given in "明强伟军勇涛杰鹏亮刚东海"]
        people += [Person(family + given, "她", "她", "她的") for given in "芳丽娜敏静燕玲梅霞兰雪莉"]
    return people


def _join(starts: Sequence[str], ends: Sequence[str]) -> list[str]:
    return [start + end for start in starts for end in ends if start != end]


_PETS_EN = _join(words("Bu Do Fi Ga Hu Ju Ki Lu Mo Nu Pi Po Ru Su Ta To Wi Zi"), words("ffy ki zu bo fi po zy mop"))
_PETS_ZH = _join("毛豆团圆球乐花果米糖雪云星月点朵多贝可欢奇灰黑白", "毛豆团圆球乐花果米糖宝贝点")
_TOWNS_EN = _join(
    words("Mar Ash Bel Cor Dun Elm Fern Glen Hart Kil Lyn Nor Oak Pen Red Stan Thorn Wes Win Yar"),
    words("ford ton ville field wick dale port bury mouth ham"),
)
_TOWNS_ZH = _join(_join("青白红黄金银石松柳竹云龙清长东南西北新", "河山桥湖泉岭沙林溪湾"), "镇村")
_THINGS_EN = _join(
    words("zib tup mog wap fen gol kip dax nup rop lum ved sab pim hob jat"),
    words("bet ple go kin ler dum zo fo nel tin ra by"),
)
_THINGS_ZH = _join("咕噜嘟啪哒啦咪叽噗咚哩呜嘻哈咔吱", "咕噜嘟啪哒啦咪叽噗咚哩呜嘻咔")

PEOPLE = {"en": _deal(_people_en(), lambda p: p.name), "zh": _deal(_people_zh(), lambda p: p.name)}
PETS = {"en": _deal(_PETS_EN), "zh": _deal(_PETS_ZH)}
TOWNS = {"en": _deal(_TOWNS_EN), "zh": _deal(_TOWNS_ZH)}
THINGS = {"en": _deal(_THINGS_EN), "zh": _deal(_THINGS_ZH)}


class Draw:
    """A stream of choices in one language and one split; `restart` makes it a pure function of the numbers given."""

    def __init__(self, split: str, language: str) -> None:
        self.split, self.language = split, language
        self._random = Random()
        self.random = self._random.random
        self._people = PEOPLE[language][split]
        self._pets = PETS[language][split]
        self._towns = TOWNS[language][split]
        self._things = THINGS[language][split]

    def restart(self, seed: int, stream: int, index: int) -> None:
        self._random.seed((seed & 0xFFFFFFFFFFFFFFFF) << 72 | stream << 64 | index)

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        return int(self.random() * n)

    def between(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return low + int(self.random() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.random() * len(options))]

    def sample(self, options: Sequence[T], k: int) -> list[T]:
        """`k` different elements, in random order (for k well below the length: drawn again when met before)."""
        if 2 * k > len(options):
            return self.shuffled(options)[:k]
        positions: list[int] = []
        while len(positions) < k:
            position = int(self.random() * len(options))
            if position not in positions:
                positions.append(position)
        return [options[position] for position in positions]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        result = list(options)
        for i in range(len(result) - 1, 0, -1):
            j = int(self.random() * (i + 1))
            result[i], result[j] = result[j], result[i]
        return result

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def person(self) -> Person:
        return self.pick(self._people)

    def people(self, k: int) -> list[Person]:
        return self.sample(self._people, k)

    def pet(self) -> str:
        return self.pick(self._pets)

    def town(self) -> str:
        return self.pick(self._towns)

    def towns(self, k: int) -> list[str]:
        return self.sample(self._towns, k)

    def thing(self) -> str:
        return self.pick(self._things)

    def admits(self, *key: object) -> bool:
        """Whether a combination belongs to this split."""
        return split_of("|".join(map(str, key))) == self.split

    def unseen(self, *key: object) -> bool:
        """Whether a combination is kept out of training text."""
        return split_of("|".join(map(str, key))) != "train"
