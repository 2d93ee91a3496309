"""Real facts: countries, chemical elements, planets, units."""

from __future__ import annotations

from typing import NamedTuple

from xmodel.corpus.sandbox.draw import pairs, phrases


class Country(NamedTuple):
    """Names as pairs (English, Chinese). `language` is the one most people there speak or use officially."""

    name: tuple[str, str]
    capital: tuple[str, str]
    continent: tuple[str, str]
    language: tuple[str, str]


_CONTINENTS = dict(
    pairs("Asia|亚洲, Europe|欧洲, Africa|非洲, North America|北美洲, South America|南美洲, Oceania|大洋洲")
)
_LANGUAGES = dict(
    pairs(
        "Chinese|汉语, Japanese|日语, Korean|韩语, Vietnamese|越南语, Thai|泰语, Hindi|印地语, "
        "Arabic|阿拉伯语, Persian|波斯语, Turkish|土耳其语, Mongolian|蒙古语, English|英语, French|法语, "
        "German|德语, Italian|意大利语, Spanish|西班牙语, Portuguese|葡萄牙语, Dutch|荷兰语, Russian|俄语, "
        "Polish|波兰语, Greek|希腊语, Swedish|瑞典语, Norwegian|挪威语, Danish|丹麦语, Finnish|芬兰语, "
        "Hungarian|匈牙利语, Czech|捷克语, Romanian|罗马尼亚语, Ukrainian|乌克兰语, Bulgarian|保加利亚语, Icelandic|冰岛语, "
        "Indonesian|印度尼西亚语, Malay|马来语, Swahili|斯瓦希里语, Urdu|乌尔都语, Nepali|尼泊尔语, Amharic|阿姆哈拉语, "
        "Khmer|高棉语, Bengali|孟加拉语, Serbian|塞尔维亚语"
    )
)
_COUNTRIES = """
China|中国|Beijing|北京|Asia|Chinese
Japan|日本|Tokyo|东京|Asia|Japanese
South Korea|韩国|Seoul|首尔|Asia|Korean
Vietnam|越南|Hanoi|河内|Asia|Vietnamese
Thailand|泰国|Bangkok|曼谷|Asia|Thai
India|印度|New Delhi|新德里|Asia|Hindi
Pakistan|巴基斯坦|Islamabad|伊斯兰堡|Asia|Urdu
Nepal|尼泊尔|Kathmandu|加德满都|Asia|Nepali
Bangladesh|孟加拉国|Dhaka|达卡|Asia|Bengali
Iran|伊朗|Tehran|德黑兰|Asia|Persian
Iraq|伊拉克|Baghdad|巴格达|Asia|Arabic
Saudi Arabia|沙特阿拉伯|Riyadh|利雅得|Asia|Arabic
Mongolia|蒙古|Ulaanbaatar|乌兰巴托|Asia|Mongolian
Cambodia|柬埔寨|Phnom Penh|金边|Asia|Khmer
Indonesia|印度尼西亚|Jakarta|雅加达|Asia|Indonesian
Malaysia|马来西亚|Kuala Lumpur|吉隆坡|Asia|Malay
Turkey|土耳其|Ankara|安卡拉|Asia|Turkish
Jordan|约旦|Amman|安曼|Asia|Arabic
France|法国|Paris|巴黎|Europe|French
Germany|德国|Berlin|柏林|Europe|German
Italy|意大利|Rome|罗马|Europe|Italian
Spain|西班牙|Madrid|马德里|Europe|Spanish
Portugal|葡萄牙|Lisbon|里斯本|Europe|Portuguese
the United Kingdom|英国|London|伦敦|Europe|English
Ireland|爱尔兰|Dublin|都柏林|Europe|English
the Netherlands|荷兰|Amsterdam|阿姆斯特丹|Europe|Dutch
Austria|奥地利|Vienna|维也纳|Europe|German
Russia|俄罗斯|Moscow|莫斯科|Europe|Russian
Poland|波兰|Warsaw|华沙|Europe|Polish
Greece|希腊|Athens|雅典|Europe|Greek
Sweden|瑞典|Stockholm|斯德哥尔摩|Europe|Swedish
Norway|挪威|Oslo|奥斯陆|Europe|Norwegian
Denmark|丹麦|Copenhagen|哥本哈根|Europe|Danish
Finland|芬兰|Helsinki|赫尔辛基|Europe|Finnish
Hungary|匈牙利|Budapest|布达佩斯|Europe|Hungarian
the Czech Republic|捷克|Prague|布拉格|Europe|Czech
Romania|罗马尼亚|Bucharest|布加勒斯特|Europe|Romanian
Ukraine|乌克兰|Kyiv|基辅|Europe|Ukrainian
Bulgaria|保加利亚|Sofia|索非亚|Europe|Bulgarian
Serbia|塞尔维亚|Belgrade|贝尔格莱德|Europe|Serbian
Iceland|冰岛|Reykjavik|雷克雅未克|Europe|Icelandic
Egypt|埃及|Cairo|开罗|Africa|Arabic
Morocco|摩洛哥|Rabat|拉巴特|Africa|Arabic
Algeria|阿尔及利亚|Algiers|阿尔及尔|Africa|Arabic
Kenya|肯尼亚|Nairobi|内罗毕|Africa|Swahili
Ethiopia|埃塞俄比亚|Addis Ababa|亚的斯亚贝巴|Africa|Amharic
Nigeria|尼日利亚|Abuja|阿布贾|Africa|English
Ghana|加纳|Accra|阿克拉|Africa|English
Senegal|塞内加尔|Dakar|达喀尔|Africa|French
Angola|安哥拉|Luanda|罗安达|Africa|Portuguese
Zambia|赞比亚|Lusaka|卢萨卡|Africa|English
Canada|加拿大|Ottawa|渥太华|North America|English
the United States|美国|Washington|华盛顿|North America|English
Mexico|墨西哥|Mexico City|墨西哥城|North America|Spanish
Cuba|古巴|Havana|哈瓦那|North America|Spanish
Panama|巴拿马|Panama City|巴拿马城|North America|Spanish
Brazil|巴西|Brasilia|巴西利亚|South America|Portuguese
Argentina|阿根廷|Buenos Aires|布宜诺斯艾利斯|South America|Spanish
Chile|智利|Santiago|圣地亚哥|South America|Spanish
Peru|秘鲁|Lima|利马|South America|Spanish
Colombia|哥伦比亚|Bogota|波哥大|South America|Spanish
Ecuador|厄瓜多尔|Quito|基多|South America|Spanish
Venezuela|委内瑞拉|Caracas|加拉加斯|South America|Spanish
Australia|澳大利亚|Canberra|堪培拉|Oceania|English
New Zealand|新西兰|Wellington|惠灵顿|Oceania|English
Fiji|斐济|Suva|苏瓦|Oceania|English
"""
COUNTRIES = [
    Country((f[0], f[1]), (f[2], f[3]), (f[4], _CONTINENTS[f[4]]), (f[5], _LANGUAGES[f[5]]))
    for f in (line.split("|") for line in _COUNTRIES.strip().splitlines())
]


class Element(NamedTuple):
    number: int
    symbol: str
    name: tuple[str, str]


_ELEMENTS = (
    "1 H hydrogen 氢,2 He helium 氦,3 Li lithium 锂,4 Be beryllium 铍,5 B boron 硼,6 C carbon 碳,7 N nitrogen 氮,8 O oxygen 氧,"
    "9 F fluorine 氟,10 Ne neon 氖,11 Na sodium 钠,12 Mg magnesium 镁,13 Al aluminium 铝,14 Si silicon 硅,15 P phosphorus 磷,"
    "16 S sulfur 硫,17 Cl chlorine 氯,18 Ar argon 氩,19 K potassium 钾,20 Ca calcium 钙,21 Sc scandium 钪,22 Ti titanium 钛,"
    "23 V vanadium 钒,24 Cr chromium 铬,25 Mn manganese 锰,26 Fe iron 铁,27 Co cobalt 钴,28 Ni nickel 镍,29 Cu copper 铜,30 Zn zinc 锌,"
    "31 Ga gallium 镓,32 Ge germanium 锗,33 As arsenic 砷,34 Se selenium 硒,35 Br bromine 溴,36 Kr krypton 氪,37 Rb rubidium 铷,"
    "38 Sr strontium 锶,39 Y yttrium 钇,40 Zr zirconium 锆,41 Nb niobium 铌,42 Mo molybdenum 钼,44 Ru ruthenium 钌,45 Rh rhodium 铑,"
    "46 Pd palladium 钯,47 Ag silver 银,48 Cd cadmium 镉,49 In indium 铟,50 Sn tin 锡,51 Sb antimony 锑,53 I iodine 碘,54 Xe xenon 氙,"
    "55 Cs caesium 铯,56 Ba barium 钡,74 W tungsten 钨,77 Ir iridium 铱,78 Pt platinum 铂,79 Au gold 金,80 Hg mercury 汞,82 Pb lead 铅,"
    "83 Bi bismuth 铋,86 Rn radon 氡,88 Ra radium 镭,92 U uranium 铀"
)
ELEMENTS = [Element(int(f[0]), f[1], (f[2], f[3])) for f in (entry.split() for entry in phrases(_ELEMENTS))]

# In order from the sun: name and what it is known for.
PLANETS = {
    "en": [
        ("Mercury", "is the smallest planet"), ("Venus", "is the hottest planet"), ("Earth", "is our home"), ("Mars", "is called the red planet"),
        ("Jupiter", "is the biggest planet"), ("Saturn", "has the brightest rings"), ("Uranus", "lies on its side"), ("Neptune", "is the farthest planet from the sun"),
    ],
    "zh": [
        ("水星", "是最小的行星"), ("金星", "是最热的行星"), ("地球", "是我们的家"), ("火星", "又叫红色的行星"),
        ("木星", "是最大的行星"), ("土星", "有最亮的光环"), ("天王星", "是躺着转的行星"), ("海王星", "是离太阳最远的行星"),
    ],
}  # fmt: skip

# One of the big unit is so many of the small one.
UNITS = {
    "en": [
        ("minute", 60, "seconds"), ("hour", 60, "minutes"), ("day", 24, "hours"), ("week", 7, "days"), ("year", 12, "months"),
        ("metre", 100, "centimetres"), ("kilometre", 1000, "metres"), ("kilogram", 1000, "grams"), ("litre", 1000, "millilitres"), ("century", 100, "years"),
    ],
    "zh": [
        ("一分钟", 60, "秒"), ("一小时", 60, "分钟"), ("一天", 24, "小时"), ("一个星期", 7, "天"), ("一年", 12, "个月"),
        ("一米", 100, "厘米"), ("一公里", 1000, "米"), ("一公斤", 1000, "克"), ("一升", 1000, "毫升"), ("一个世纪", 100, "年"),
    ],
}  # fmt: skip
