"""Which language is a text in Latin script in? Told by its function words.

A third to a half of the words of running text are function words, and the commonest forty of a language are a matter
of grammar, not of topic (Grefenstette, 1995, "Comparing two language identification schemes", finds them as good as
letter trigrams from fifteen words on). So the model is these lists, a few hundred words that a person can read and
correct, and a look-up costs a few nanoseconds. Code, tables and names have few function words of any language and stay
undecided, where a classifier that must name a language calls them Latin or Danish.

Which script a text is in decides first (measures.py): Han, kana and every script but Latin never come here.
"""

from __future__ import annotations

ENGLISH = (
    "the of and to in is that it for was with as on be by at this are from or have an not which but his her he she "
    "they you we were has had their its been will would can could there when who what more if no than them then so "
    "these some into other only about your our all one does do may should must where while because how any each "
    "such between also my me a used using use"
)

# By ISO 639-1 code. A word that English has as well speaks for English alone; single ASCII letters are left out, since
# they are the variables of code.
OTHERS = {
    "fr": "le la les des du et est une un dans que qui pour pas sur par avec ne se au aux ce cette ces il elle nous vous ils sont été être ont mais ou où leur son sa ses je tu mon ma notre votre comme fait peut très tout même sans sous depuis entre aussi",
    "de": "der die das und ist nicht ein eine einen einem einer eines den dem des zu mit von für auf im sich auch als wie nach bei aus wird werden wurde sind haben hat ich sie wir es ihr sein seine ihre oder aber kann noch nur so über durch zum zur vom diese dieser mein unter seit gestern",
    "es": "el la los las de del es en un una que por con para no se su sus al lo como más pero fue son está este esta ha han era muy también sobre entre cuando hay ser sin desde ya le me mi nos todo donde todos puede nuestro porque ayer hasta",
    "it": "il lo la gli le di del della dei delle è che un una per con non si su da dal dalla nel nella al alla più ma sono ha anche questo questa era suo sua loro essere stato se ci cosa quando molto tutti degli sul sulla hanno perché",
    "pt": "os as do da dos das é em um uma que para com não por se no na nos nas ao mais como mas foi são ou seu sua ele ela está ser isso também muito já pelo pela este esta entre quando tem até sem eu você nós",
    "nl": "de het een en van is niet dat op te zijn voor met die aan er ook maar als bij door naar om uit dan nog worden wordt werd heeft hebben kan geen deze dit ik je wij ze hij wat meer hun over onder tussen",
    "sv": "och att det som en på är av för med den inte om ett var jag har de från vid så kan efter eller hade när ska skulle vi han hon sig mycket mot också alla denna ut",
    "da": "og at det som en på er af for med den til ikke om et var jeg har de fra ved så kan efter eller havde når skal vil vi han hun sig meget mod også alle denne blev disse",
    "no": "og at det som en på er av for med den til ikke om et var jeg har de fra ved så kan etter eller hadde når skal vil vi han hun seg mye mot også alle denne ble disse være",
    "fi": "ja on ei että se oli hän mutta kun kuin niin myös ovat joka sen olla mukaan tai vain jos minä ne siitä hänen ole mitä voi sekä jo nyt tämä tämän jotka kaikki sitä nämä",
    "pl": "na do nie się jest że jak za po od przez dla są przy co był ale tym już tylko być jego może było które który która oraz ich tak lub także jej gdy czy ze we",
    "cs": "na se je to že do pro jako by za po od jsou ale jeho nebo byl podle které který která si být jen bylo také tak už aby může při až ve ze jak ještě jsem",
    "hu": "az és hogy nem is egy van ez volt meg de mint csak már el még azt ki ha vagy lehet után minden kell ezt több nagy ami aki mert között szerint ezek fel le sem",
    "ro": "și de la în nu că pe cu un este din se mai pentru sunt ce fi al ale au fost sau lui ca prin după să dar dintre acest această ei lor până când",
    "tr": "ve bir bu da de için ile çok olarak daha olan gibi ne var ama en kadar sonra ki ya mi değil olduğu veya ise göre tarafından ancak şey ben sen biz",
    "vi": "và của là có trong được cho các một không với những người này để khi đã từ đến cũng như tại về ra năm vào nhiều sẽ theo bị do phải trên nên lại hoặc",
    "id": "yang dan di dengan untuk pada ini dari dalam itu tidak akan adalah ke oleh sebagai juga dapat atau telah karena ada mereka saya lebih bisa kami sudah seperti kita anda tersebut hanya",
}  # fmt: skip

LANGUAGES = ("en", *OTHERS)

# Gopher's eight (Rae et al. 2021, appendix A.1.1), and as many of the commonest characters of Chinese grammar.
STOP_WORDS = {"en": "the be to of and that have with", "zh": "的 是 在 不 了 和 有 这"}


def function_words() -> dict[str, tuple[int, int]]:
    """Each function word with two bit sets: its languages (bit l is LANGUAGES[l]), and the stop word that it is.

    Bits 0 to 7 of the second are the stop words of English, bits 8 to 15 those of Chinese.
    """
    words: dict[str, tuple[int, int]] = dict.fromkeys(ENGLISH.split(), (1, 0))
    for number, text in enumerate(OTHERS.values(), start=1):
        for word in text.split():
            languages = words.get(word, (0, 0))[0]
            words[word] = (languages if languages == 1 else languages | 1 << number, 0)
    for number, word in enumerate(f"{STOP_WORDS['en']} {STOP_WORDS['zh']}".split()):
        words[word] = (words.get(word, (0, 0))[0], 1 << number)
    return words
