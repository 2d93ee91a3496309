"""The nouns of the little world in both languages: animals, objects, food, rooms, containers, and how to count them."""

from __future__ import annotations

from typing import NamedTuple

from xmodel.corpus.sandbox.draw import pairs, words

NUMBERS = {
    "en": words("zero one two three four five six seven eight nine ten eleven twelve"),
    "zh": words("零 一 两 三 四 五 六 七 八 九 十 十一 十二"),  # as said before a measure word
}


class Noun(NamedTuple):
    """A countable thing: English singular and plural, Chinese noun and its measure word."""

    en: str
    many: str
    zh: str
    measure: str

    @property
    def a(self) -> str:
        return with_article(self.en)


def with_article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


def _plural(word: str) -> str:
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def _nouns(text: str) -> list[Noun]:
    nouns = []
    for entry in text.replace("\n", ",").split(","):
        fields = entry.split()
        if fields:
            en, zh, measure = fields[:3]
            nouns.append(Noun(en, fields[3] if len(fields) > 3 else _plural(en), zh, measure))
    return nouns


OBJECTS = _nouns("""
ball 球 个, kite 风筝 只, cup 杯子 个, book 书 本, key 钥匙 把, hat 帽子 顶, lamp 台灯 盏, pen 钢笔 支
coin 硬币 枚, shell 贝壳 个, ring 戒指 枚, clock 闹钟 个, backpack 书包 个, doll 娃娃 个, drum 鼓 面, map 地图 张
scarf 围巾 条 scarves, bell 铃铛 个, stone 石头 块, vase 花瓶 个, umbrella 雨伞 把, flute 笛子 支
""")
FOODS = _nouns("""
apple 苹果 个, pear 梨 个, peach 桃子 个, plum 李子 个, banana 香蕉 根, orange 橙子 个, carrot 胡萝卜 根, tomato 西红柿 个 tomatoes
egg 鸡蛋 个, cake 蛋糕 块, potato 土豆 个 potatoes, lemon 柠檬 个, melon 西瓜 个, cookie 饼干 块, onion 洋葱 个, dumpling 饺子 个
""")
CONTAINERS = _nouns("""
box 盒子 个, basket 篮子 个, drawer 抽屉 个, jar 罐子 个, bag 袋子 个, pocket 口袋 个, cupboard 柜子 个, bucket 水桶 个
bowl 碗 个, pot 锅 口, suitcase 箱子 个, tin 铁盒 个
""")

# A place one can be in or go to: English after "in", Chinese before 里.
ROOMS = pairs(
    "kitchen|厨房, garden|花园, bedroom|卧室, cellar|地下室, attic|阁楼, garage|车库, barn|谷仓, office|办公室, "
    "classroom|教室, library|图书馆, shop|商店, hall|大厅, bathroom|浴室, park|公园, tower|塔楼, forest|森林"
)
HOBBIES = pairs(
    "swimming|游泳, painting|画画, cooking|做饭, singing|唱歌, dancing|跳舞, reading|看书, fishing|钓鱼, running|跑步, "
    "chess|下棋, football|踢足球, skating|滑冰, gardening|种花"
)
COLOUR_WORDS = pairs(
    "red|红色, blue|蓝色, green|绿色, yellow|黄色, white|白色, black|黑色, brown|棕色, pink|粉色, grey|灰色, purple|紫色"
)


class Animal(NamedTuple):
    """A kind of animal. `sound`, `food` and `home` are pairs (English, Chinese); an empty sound means silence."""

    en: str
    many: str
    zh: str
    measure: str
    group: tuple[str, str]
    sound: tuple[str, str]
    food: tuple[str, str]
    home: tuple[str, str]
    legs: int
    young: tuple[str, str]


_GROUPS = {
    "mammal": "哺乳动物",
    "bird": "鸟类",
    "insect": "昆虫",
    "fish": "鱼类",
    "reptile": "爬行动物",
    "arachnid": "蛛形动物",
    "amphibian": "两栖动物",
}
_ANIMALS = """
cat|cats|猫|只|mammal|meow|喵喵|fish|鱼|in a house|房子里|4|kitten|小猫
dog|dogs|狗|只|mammal|woof|汪汪|meat|肉|in a kennel|狗窝里|4|puppy|小狗
cow|cows|奶牛|头|mammal|moo|哞哞|grass|草|in a barn|牛棚里|4|calf|小牛
sheep|sheep|绵羊|只|mammal|baa|咩咩|grass|草|on a meadow|草地上|4|lamb|小羊
pig|pigs|猪|头|mammal|oink|哼哼|potatoes|土豆|in a sty|猪圈里|4|piglet|小猪
horse|horses|马|匹|mammal|neigh|咴咴|hay|干草|in a stable|马厩里|4|foal|小马
hen|hens|母鸡|只|bird|cluck|咯咯|grain|谷粒|in a coop|鸡窝里|2|chick|小鸡
duck|ducks|鸭子|只|bird|quack|嘎嘎|water plants|水草|on a pond|池塘里|2|duckling|小鸭
frog|frogs|青蛙|只|amphibian|croak|呱呱|insects|虫子|on a pond|池塘里|4|tadpole|蝌蚪
bee|bees|蜜蜂|只|insect|buzz|嗡嗡|nectar|花蜜|in a hive|蜂巢里|6|larva|幼虫
lion|lions|狮子|头|mammal|roar|吼吼|meat|肉|on the savanna|草原上|4|cub|小狮子
mouse|mice|老鼠|只|mammal|squeak|吱吱|seeds|种子|in a hole|洞里|4|pup|小老鼠
owl|owls|猫头鹰|只|bird|hoot|咕咕|mice|老鼠|in a hollow tree|树洞里|2|owlet|小猫头鹰
snake|snakes|蛇|条|reptile|hiss|嘶嘶|mice|老鼠|in a hole|洞里|0|snakelet|小蛇
sparrow|sparrows|麻雀|只|bird|chirp|叽叽|seeds|种子|in a nest|鸟巢里|2|chick|小麻雀
rabbit|rabbits|兔子|只|mammal|||carrots|胡萝卜|in a burrow|地洞里|4|bunny|小兔
monkey|monkeys|猴子|只|mammal|||bananas|香蕉|in the jungle|丛林里|4|baby monkey|小猴
panda|pandas|熊猫|只|mammal|||bamboo|竹子|in a bamboo forest|竹林里|4|cub|熊猫宝宝
whale|whales|鲸鱼|头|mammal|||small sea animals|小虾|in the sea|大海里|0|calf|小鲸鱼
shark|sharks|鲨鱼|条|fish|||fish|鱼|in the sea|大海里|0|pup|小鲨鱼
salmon|salmon|三文鱼|条|fish|||small sea animals|小虾|in the river|河里|0|fry|鱼苗
penguin|penguins|企鹅|只|bird|||fish|鱼|on the ice|冰上|2|chick|小企鹅
camel|camels|骆驼|头|mammal|||hay|干草|in the desert|沙漠里|4|calf|小骆驼
squirrel|squirrels|松鼠|只|mammal|||nuts|坚果|in a hollow tree|树洞里|4|kitten|小松鼠
spider|spiders|蜘蛛|只|arachnid|||insects|虫子|in a web|网上|8|spiderling|小蜘蛛
ant|ants|蚂蚁|只|insect|||sugar|糖|in an ant hill|蚁穴里|6|larva|幼虫
butterfly|butterflies|蝴蝶|只|insect|||nectar|花蜜|on a meadow|草地上|6|caterpillar|毛毛虫
bear|bears|熊|头|mammal|||honey|蜂蜜|in a cave|山洞里|4|cub|小熊
scorpion|scorpions|蝎子|只|arachnid|||insects|虫子|in the desert|沙漠里|8|scorpling|小蝎子
"""


def _animal(line: str) -> Animal:
    f = line.split("|")
    return Animal(
        f[0],
        f[1],
        f[2],
        f[3],
        (f[4], _GROUPS[f[4]]),
        (f[5], f[6]),
        (f[7], f[8]),
        (f[9], f[10]),
        int(f[11]),
        (f[12], f[13]),
    )


ANIMALS = [_animal(line) for line in _ANIMALS.strip().splitlines()]
LEGS = {"en": {0: "no", 2: "two", 4: "four", 6: "six", 8: "eight"}, "zh": {0: "零", 2: "两", 4: "四", 6: "六", 8: "八"}}
