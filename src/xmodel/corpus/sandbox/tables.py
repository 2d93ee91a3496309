"""What everybody in the little world knows: cues and what follows from them, in both languages.

Each table is a list of `Row(cue, value)` per language. A value belongs to several cues in some tables and to one in
others; questions draw the value first, so that every value is the answer equally often.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    cue: str
    value: str


def _table(text: str) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {"en": [], "zh": []}
    for line in text.strip().splitlines():
        cue_en, value_en, cue_zh, value_zh = line.strip().split("|")
        rows["en"].append(Row(cue_en, value_en))
        rows["zh"].append(Row(cue_zh, value_zh))
    return rows


# To do this, one needs that.
TOOLS = _table("""
cut paper|scissors|剪纸|剪刀
drive in a nail|a hammer|钉钉子|锤子
sweep the floor|a broom|扫地|扫帚
write a letter|a pen|写信|钢笔
dig a hole|a spade|挖坑|铁铲
open the lock|a key|开锁|钥匙
paint the wall|a brush|刷墙|刷子
slice the bread|a knife|切面包|小刀
eat soup|a spoon|喝汤|勺子
catch fish|a net|捕鱼|渔网
climb onto the roof|a ladder|爬上屋顶|梯子
know the time|a clock|知道时间|钟表
sew on a button|a needle|缝扣子|针线
boil water|a kettle|烧水|水壶
read in the dark|a lamp|在晚上看书|台灯
measure the table|a ruler|量桌子的长度|尺子
tidy messy hair|a comb|梳头发|梳子
wash with foam|soap|洗手|肥皂
""")

# Somebody did this; then that happened to the thing.
EFFECTS = _table("""
left the ice in the sun|It melted|把冰块放在太阳下|它融化了
dropped a glass on the stones|It broke|把玻璃杯掉在石头上|它碎了
put water in the freezer|It froze|把水放进冰箱的冷冻室|它结冰了
threw paper into the fire|It burned|把纸扔进火里|它烧着了
pulled the flower out of the soil|It dried up|把花从土里拔了出来|它枯死了
blew too much air into the balloon|It burst|往气球里吹了太多气|它爆了
planted a seed and watered it|It grew|种下一粒种子并且浇水|它发芽了
threw a stone into the lake|It sank|把石头扔进湖里|它沉下去了
put a piece of wood on the lake|It floated|把一块木头放在湖面上|它浮在水上
opened the door of the bird cage|It flew away|打开了小鸟的笼子|它飞走了
forgot the milk in the warm kitchen|It went sour|把牛奶忘在了很热的厨房里|它变酸了
washed the dirty shirt|It became clean|洗了脏衬衫|它变干净了
left the iron nail in the rain|It rusted|把铁钉放在雨里|它生锈了
stirred sugar into the hot tea|It dissolved|把糖放进热茶里|它溶化了
pushed the ball down the hill|It rolled away|把球推下山坡|它滚走了
scared the rabbit with a loud noise|It ran off|用很大的声音吓了兔子|它逃跑了
""")

# After this, somebody feels that.
FEELINGS = _table("""
had not eaten all day|hungry|一整天没有吃东西|饿
had drunk nothing since morning|thirsty|从早上起没有喝水|渴
had worked all day and all night|tired|工作了一天一夜|累
lost a favourite toy|sad|丢了最喜欢的玩具|难过
got a wonderful present|happy|收到了一份很好的礼物|高兴
saw a big snake on the path|afraid|在路上看见一条大蛇|害怕
stood in the snow without a coat|cold|没穿外套站在雪里|冷
ran for an hour in the summer sun|hot|在夏天的太阳下跑了一个小时|热
found that somebody had cut the new dress|angry|发现有人剪坏了新衣服|生气
had nothing to do the whole afternoon|bored|整个下午没有事情可做|无聊
won the race and got a gold cup|proud|跑步比赛得了第一名|自豪
had an important exam the next day|nervous|第二天有一场重要的考试|紧张
heard the cat suddenly talk|surprised|听见猫突然开口说话|惊讶
ate too many green apples|sick|吃了太多没熟的苹果|恶心
moved to a town without any friends|lonely|搬到一个没有朋友的地方|孤单
heard footsteps outside but saw nobody|curious|听见门外有脚步声却没看见人|好奇
""")

# With this weather or plan, one takes that along.
EQUIPMENT = _table("""
it was raining hard|an umbrella|外面下着大雨|雨伞
it was snowing and the wind was icy|a thick coat|外面下着雪，风很冷|厚外套
the sun was very bright|a sun hat|外面的太阳很大|太阳帽
it was a dark night without a moon|a torch|晚上没有月亮，路上很黑|手电筒
the path was full of mud|rubber boots|路上都是泥|雨靴
the day was full of wind, just right for the sky|a kite|外面有风，很适合放飞|风筝
the lake was warm and good for a swim|a swimsuit|湖水很暖和，可以游泳|泳衣
the letters in the book were too small|glasses|书上的字太小了|眼镜
the snow was good for making snowballs|gloves|要用手做雪球|手套
there was a lot to buy at the market|a basket|要去市场买很多东西|篮子
the road was long and there was no water|a bottle|路很远，路上没有水喝|水瓶
the forest was big and easy to get lost in|a map|森林很大，容易迷路|地图
""")

# To do this, one goes there.
ERRANDS = _table("""
buy bread|the bakery|买面包|面包店
borrow a book|the library|借书|图书馆
post a letter|the post office|寄信|邮局
see a doctor|the hospital|看医生|医院
catch a train|the station|坐火车|火车站
learn to swim|the pool|学游泳|游泳池
watch a film|the cinema|看电影|电影院
see lions and elephants|the zoo|看狮子和大象|动物园
buy medicine|the pharmacy|买药|药店
save some money|the bank|存钱|银行
learn to read and write|the school|学习读书写字|学校
take a plane|the airport|坐飞机|机场
sell vegetables|the market|卖菜|市场
look at old paintings|the museum|看古老的画|博物馆
have dinner with friends|the restaurant|和朋友吃晚饭|饭馆
have a haircut|the barber|剪头发|理发店
""")

# A person with this job works there.
WORKPLACES = _table("""
a baker|in a bakery|面包师|面包店
a teacher|in a school|老师|学校
a doctor|in a hospital|医生|医院
a farmer|in the fields|农民|田里
a sailor|on a ship|水手|船上
a pilot|in a plane|飞行员|飞机上
a cook|in a kitchen|厨师|厨房
a librarian|in a library|图书管理员|图书馆
a judge|in a court|法官|法院
an actor|in a theatre|演员|剧院
a miner|in a mine|矿工|矿井
a waiter|in a restaurant|服务员|饭馆
a gardener|in a garden|园丁|花园
a mechanic|in a garage|修车工|修车厂
a scientist|in a laboratory|科学家|实验室
a postman|at the post office|邮递员|邮局
""")

# A person with this job does that.
TRADES = _table("""
a baker|bakes bread|面包师|烤面包
a teacher|teaches children|老师|教孩子
a doctor|heals sick people|医生|治病
a farmer|grows rice and wheat|农民|种粮食
a sailor|sails across the sea|水手|在海上开船
a pilot|flies planes|飞行员|开飞机
a cook|makes meals|厨师|做菜
a tailor|sews clothes|裁缝|做衣服
a carpenter|makes tables and chairs|木匠|做桌子和椅子
a singer|sings songs|歌手|唱歌
a painter|paints pictures|画家|画画
a writer|writes books|作家|写书
a fisherman|catches fish|渔夫|捕鱼
a builder|builds houses|建筑工人|盖房子
a shepherd|looks after sheep|牧羊人|放羊
a postman|brings letters|邮递员|送信
""")

# A new thing of this kind is there for that.
USES = _table("""
fruit|eat it|水果|吃
drink|drink it|饮料|喝
coat|wear it|衣服|穿
car|drive it|汽车|开
book|read it|书|读
song|sing it|歌|唱
game|play it|游戏|玩
chair|sit on it|椅子|坐
coin|pay with it|钱币|花
flower|smell it|花|观赏
medicine|take it when ill|药|治病
language|speak it|语言|说
house|live in it|房子|住
bed|sleep in it|床|睡觉
lamp|light a room with it|灯|照亮房间
film|watch it|电影|看
""")

# This thing has that colour.
COLOURS = _table("""
a banana|yellow|香蕉|黄色
a lemon|yellow|柠檬|黄色
a tomato|red|西红柿|红色
a strawberry|red|草莓|红色
grass|green|草地|绿色
a cucumber|green|黄瓜|绿色
the clear sky|blue|晴天的天空|蓝色
the sea|blue|大海|蓝色
snow|white|雪|白色
milk|white|牛奶|白色
coal|black|煤|黑色
a crow|black|乌鸦|黑色
a carrot|orange|胡萝卜|橙色
a pumpkin|orange|南瓜|橙色
an aubergine|purple|茄子|紫色
a plum|purple|葡萄|紫色
an elephant|grey|大象|灰色
a mouse|grey|老鼠|灰色
chocolate|brown|巧克力|棕色
a brown bear|brown|棕熊|棕色
a flamingo|pink|火烈鸟|粉色
a piglet|pink|小猪|粉色
""")

# This thing is made of that.
MATERIALS = _table("""
window|glass|窗户|玻璃
bottle|glass|瓶子|玻璃
table|wood|桌子|木头
door|wood|门|木头
nail|iron|钉子|铁
key|iron|钥匙|铁
notebook|paper|本子|纸
kite|paper|风筝|纸
sweater|wool|毛衣|羊毛
blanket|wool|毯子|羊毛
belt|leather|皮带|皮革
saddle|leather|马鞍|皮革
wall|brick|墙|砖头
chimney|brick|烟囱|砖头
ring|gold|戒指|金子
crown|gold|王冠|金子
T-shirt|cotton|短袖衫|棉花
towel|cotton|毛巾|棉花
""")

# For this, one uses that part of the body.
BODY = _table("""
hear music|the ears|听音乐|耳朵
hear the bell|the ears|听铃声|耳朵
look at a picture|the eyes|看图画|眼睛
see the stars|the eyes|看星星|眼睛
smell a flower|the nose|闻花香|鼻子
smell the soup|the nose|闻汤的香味|鼻子
taste honey|the tongue|尝蜂蜜的味道|舌头
lick an ice cream|the tongue|舔冰淇淋|舌头
hold a cup|the hands|拿杯子|手
wave goodbye|the hands|拍球|手
kick a ball|the feet|踢球|脚
stand on the floor|the feet|站在地上|脚
chew an apple|the teeth|嚼苹果|牙齿
bite a carrot|the teeth|咬胡萝卜|牙齿
think about a riddle|the brain|想谜语|大脑
remember a name|the brain|记名字|大脑
send blood through the body|the heart|让血液流遍全身|心脏
breathe fresh air|the lungs|呼吸新鲜空气|肺
""")

# To travel like this, one takes that.
VEHICLES = _table("""
cross the sea|a ship|渡过大海|轮船
fly over the mountains|a plane|从天上飞过高山|飞机
travel on rails|a train|在铁轨上旅行|火车
pedal to the next village|a bicycle|踩着踏板去邻村|自行车
dive deep under water|a submarine|潜到很深的海底|潜水艇
fly to the moon|a rocket|飞到月球上|火箭
carry sand to the building site|a truck|把沙子运到工地|卡车
slide down the snowy hill|a sledge|从雪坡上滑下来|雪橇
ride up to the tenth floor|a lift|上到十楼|电梯
float in the sky under a bag of hot air|a balloon|靠热气飘在空中|热气球
""")

# The opposite of this is that.
_OPPOSITES = """
hot cold 热 冷
big small 大 小
long short 长 短
new old 新 旧
heavy light 重 轻
clean dirty 干净 脏
full empty 满 空
wet dry 湿 干
fast slow 快 慢
hard soft 硬 软
open closed 开 关
early late 早 晚
near far 近 远
strong weak 强 弱
rich poor 富 穷
bright dark 亮 暗
thick thin 厚 薄
high low 高 低
good bad 好 坏
up down 上 下
left right 左 右
true false 真 假
many few 多 少
inside outside 里 外
"""
OPPOSITES = {
    language: [
        Row(*pair)
        for line in _OPPOSITES.strip().splitlines()
        for pair in (line.split()[at : at + 2], line.split()[at : at + 2][::-1])
    ]
    for language, at in (("en", 0), ("zh", 2))
}

# From small to big, and from slow to fast; every thing is clearly apart from its neighbours.
SIZES = {
    "en": [
        "a grain of sand",
        "an ant",
        "a bee",
        "a mouse",
        "a cat",
        "a sheep",
        "a cow",
        "an elephant",
        "a whale",
        "a mountain",
        "the moon",
        "the earth",
        "the sun",
    ],
    "zh": ["沙粒", "蚂蚁", "蜜蜂", "老鼠", "猫", "绵羊", "奶牛", "大象", "鲸鱼", "高山", "月亮", "地球", "太阳"],
}
SPEEDS = {
    "en": ["a snail", "a tortoise", "a walking child", "a bicycle", "a bus", "a fast train", "a plane", "a rocket"],
    "zh": ["蜗牛", "乌龟", "走路的孩子", "自行车", "公共汽车", "高铁", "飞机", "火箭"],
}

DAYS = {
    "en": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "zh": ["星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期天"],
}
MONTHS = {
    "en": [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ],
    "zh": ["一月", "二月", "三月", "四月", "五月", "六月", "七月", "八月", "九月", "十月", "十一月", "十二月"],
}
SEASONS = {
    "en": [
        ("spring", "warm", "flowers open"),
        ("summer", "hot", "children swim in the lake"),
        ("autumn", "cool", "leaves turn yellow"),
        ("winter", "cold", "snow falls"),
    ],
    "zh": [
        ("春天", "暖和", "花开了"),
        ("夏天", "热", "孩子们在湖里游泳"),
        ("秋天", "凉快", "树叶变黄"),
        ("冬天", "冷", "下雪"),
    ],
}
