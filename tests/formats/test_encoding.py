"""Bytes become text by mark, strict UTF-8, declaration and detection, or are refused."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from conftest import Outcome

from sheaf.formats.encoding import PROVED, SURE, decode
from sheaf.formats.guess import confidence
from sheaf.formats.stream import Refused

RUSSIAN = (
    "Каждое утро в большом городе просыпаются тысячи людей. Они пьют чай, читают новости и идут на работу пешком или "
    "едут на автобусе. Вечером они возвращаются домой, ужинают, разговаривают с детьми и смотрят на огни за окном."
)
CHINESE = (
    "每天早晨，大城市里成千上万的人醒来。他们喝茶，看新闻，步行或乘公共汽车去上班。晚上他们回到家里，吃晚饭，和孩子们聊天，看窗外的灯光。"
    * 4
)
TRADITIONAL = (
    "每天早晨，大城市裡成千上萬的人醒來。他們喝茶，看新聞，步行或乘公共汽車去上班。晚上他們回到家裡，吃晚飯，和孩子們聊天，看窗外的燈光。"
    * 4
)
JAPANESE = (
    "毎朝、大きな町では何千人もの人が目を覚まします。お茶を飲み、ニュースを読み、歩いて、またはバスで仕事に行きます。夜は家に帰って、夕食を食べ、子どもたちと話します。"
    * 3
)
KOREAN = (
    "매일 아침 큰 도시에서는 수천 명의 사람들이 잠에서 깹니다. 그들은 차를 마시고 "
    "뉴스를 읽고 걸어서 또는 버스를 타고 일하러 갑니다. "
    "저녁에는 집으로 돌아와 아이들과 이야기합니다. " * 3
)
GERMAN = (
    "Jeden Morgen wachen in der großen Stadt Tausende von Menschen auf. Sie trinken Tee, lesen die Nachrichten und "
    "gehen zu Fuß zur Arbeit oder fahren mit dem Bus. Abends kehren sie zurück, essen, erzählen und hören dem Regen "
    "zu. Schöne Grüße!"
)

CASES = [
    ("utf-16-le", CHINESE), ("utf-16-be", RUSSIAN), ("utf-16-le", GERMAN), ("utf-16-be", JAPANESE),
    ("utf-32-le", GERMAN), ("gb18030", CHINESE), ("gbk", CHINESE), ("big5", TRADITIONAL), ("shift_jis", JAPANESE),
    ("euc_jp", JAPANESE), ("iso2022_jp", JAPANESE), ("euc_kr", KOREAN), ("latin-1", GERMAN),
    ("cp1252", GERMAN + " – „so“ …"), ("cp1251", RUSSIAN), ("koi8_r", RUSSIAN),
]  # fmt: skip


@pytest.mark.parametrize(("encoding", "text"), CASES, ids=[f"{e}-{i}" for i, (e, _) in enumerate(CASES)])
def test_texts_of_200_characters_are_decoded_without_a_hint(encoding: str, text: str) -> None:
    assert len(text) >= 200
    assert decode(text.encode(encoding)).text == text


CZECH = (
    "Každé ráno se ve velkém městě probouzejí tisíce lidí. Pijí čaj, čtou noviny a jdou do práce pěšky nebo jedou "
    "autobusem. Večer se vracejí domů, večeří, povídají si s dětmi a dívají se na světla za oknem."
)
TURKISH = (
    "Her sabah büyük şehirde binlerce insan uyanır. Çay içer, haberleri okur ve işe yürüyerek ya da otobüsle gider."
)
RULER = "~" * 78 + "\n" + " " * 30 + "* * *\n" + "-" * 78 + "\n"
THINNED = [("cp1250", CZECH), ("iso8859-2", CZECH), ("cp1254", TURKISH), ("cp1251", RUSSIAN), ("big5", TRADITIONAL)]


@pytest.mark.parametrize(("encoding", "text"), THINNED, ids=[encoding for encoding, _ in THINNED])
def test_much_ascii_around_a_text_hides_nothing(encoding: str, text: str) -> None:
    """Rulers and English made detection unsure, and what it was unsure of was taken for Western European."""
    whole = "".join(f"{RULER * 4}Chapter {n}: a heading in English\n{text}\n" for n in range(12))
    assert decode(whole.encode(encoding)).text == whole


def test_words_between_the_tags_of_a_table_are_no_western_european() -> None:
    words = CZECH.replace(".", "").replace(",", "").split()
    page = "".join(f'<tr class="row odd"><td align="left">{word}</td></tr>\n' for word in words)
    try:
        assert decode(page.encode("cp1250")).text == page
    except Refused as refused:
        assert refused.reason == "undecodable"


def test_a_few_names_in_every_row_tell_no_more_than_once() -> None:
    table = "".join(f"{n};{('Anna Müller', 'José', 'Bob', 'Zoë')[n % 4]};{n}.50\n" for n in range(60))
    assert decode(table.encode("cp1252")).text == table


@pytest.mark.parametrize("data", [b"\0ax\n", b"ab\0\0", bytes([1]) * 4000, bytes([1, 1, 2, 1]) * 900])
def test_a_few_bytes_and_tables_of_numbers_are_no_utf16(data: bytes) -> None:
    with pytest.raises(Refused):
        decode(data)


def test_chance_makes_hardly_any_utf16_of_short_binary_data() -> None:
    """Bytes with a NUL here and there; before scripts were compared, one in four of 24 bytes was read."""
    rng = random.Random(1)
    read = 0
    for size in (24, 32, 40, 64) * 250:
        raw = bytearray(rng.randbytes(size))
        for _ in range(size // 12):
            raw[rng.randrange(size)] = 0
        try:
            read += bool(decode(bytes(raw)).text)
        except Refused:
            continue
    assert read < 10


@pytest.mark.parametrize(
    "text", ["Иван читает «The Times» сегодня", "東京タワーへ行きました。OK!", "오늘은 날씨가 좋습니다, Kim씨"]
)
def test_a_line_of_utf16_is_read_without_a_mark(text: str) -> None:
    for encoding in ("utf-16-le", "utf-16-be"):
        assert decode(text.encode(encoding)).text == text


def test_iso_2022_cn_is_refused_rather_than_read_as_ascii() -> None:
    raw = b"\x1b$)A\x0e" + bytes(b & 0x7F for b in "今天天气很好".encode("gb2312")) + b"\x0f and more"
    with pytest.raises(Refused, match="ISO-2022-CN"):
        decode(raw)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_decides_and_is_not_text(encoding: str) -> None:
    decoded = decode("é".encode(encoding))
    assert decoded.text == "é" and decoded.mark in (2, 3, 4)


def test_utf8_comes_before_what_is_declared_and_that_before_a_guess() -> None:
    assert decode("größer".encode(), "latin-1").text == "größer"
    assert decode(RUSSIAN.encode("koi8_r"), "koi8-r").encoding == "koi8-r"
    assert decode("naïve".encode("latin-1"), "iso-8859-1") == decode("naïve".encode("cp1252"), "windows-1252")


def test_one_name_in_english_text_is_read_as_windows_1252() -> None:
    text = "The author of this file is José García, who wrote it in 2004."
    assert decode(text.encode("cp1252")).text == text


@pytest.mark.parametrize("label", ["base64", "rot13", "unicode_escape", "idna", "utf-7", "no-such", "x" * 1000, "é"])
def test_labels_that_are_no_charsets_are_ignored(label: str) -> None:
    assert decode(GERMAN.encode("latin-1"), label).text == GERMAN


@pytest.mark.parametrize("size", [300, 3000, 30_000])
def test_random_bytes_are_refused_rather_than_guessed(size: int) -> None:
    for seed in range(5):
        with pytest.raises(Refused) as caught:
            decode(random.Random(seed).randbytes(size))
        assert caught.value.reason == "undecodable"


def test_damaged_utf8_is_not_taken_for_another_encoding() -> None:
    with pytest.raises(Refused):
        decode((CHINESE + "\n").encode() * 20 + b"\xff\xfe\xfd\n" * 5)


def test_the_same_bytes_always_decode_the_same() -> None:
    raw = GERMAN.encode("cp1252")
    assert decode(raw) == decode(bytes(raw))


def test_what_is_said_or_proved_is_certain_and_what_is_guessed_is_not() -> None:
    for raw, declared in ((b"plain", ""), ("é".encode(), ""), ("é".encode("utf-16"), ""), (b"caf\xe9", "latin-1")):
        assert confidence(decode(raw, declared).encoding) == 1.0
    assert confidence(decode(GERMAN.encode("utf-16-le")).encoding) == PROVED
    assert SURE <= confidence(decode(GERMAN.encode("latin-1")).encoding) < 1.0


def test_more_text_makes_a_guess_surer() -> None:
    words = RUSSIAN.split()
    sure = [confidence(decode(" ".join(words[:n]).encode("cp1251")).encoding) for n in (2, 30)]
    assert sure[0] < 0.9 and sure[1] > 0.99


SHORT_TEXTS = [
    ("cp1250", "příští týden"), ("iso8859-2", "Kaldırım".replace("ı", "i") + " łąka źle święto"),
    ("cp1251", "привет, мир"), ("koi8_r", "здравствуйте, товарищи"), ("cp1253", "Καλημέρα κόσμε"),
    ("cp1254", "İyi akşamlar, nasılsınız"), ("cp1255", "שלום עולם"), ("cp1256", "مرحبا بالعالم"),
    ("cp1257", "šiltos žinios ąžuolas"), ("cp850", "Später hören wir die Vögel über den Häusern"),
    ("mac_roman", "crème brûlée à la carte"), ("cp874", "สวัสดีชาวโลก"), ("gb18030", "你好，世界"), ("big5", "歡迎光臨"),
    ("shift_jis", "こんにちは世界"), ("euc_jp", "ありがとうございます"), ("cp949", "안녕하세요 여러분"),
    ("iso8859-16", "știrile și cărțile"), ("iso8859-14", "dŷ"), ("cp852", "dź"), ("koi8_u", "і"), ("mac_cyrillic", "с"),
]  # fmt: skip


@pytest.mark.parametrize(("encoding", "text"), SHORT_TEXTS, ids=[encoding for encoding, _ in SHORT_TEXTS])
@pytest.mark.parametrize("around", ["{}", "In the year 2004 he wrote {} twice."])
def test_a_few_words_come_out_right_or_are_refused_with_how_sure_a_guess_would_be(
    encoding: str, text: str, around: str
) -> None:
    whole = around.format(text)
    try:
        assert decode(whole.encode(encoding)).text == whole
    except Refused as refused:
        assert refused.reason == "undecodable"
        assert "confidence 0." in refused.detail or "no other" in refused.detail


@pytest.mark.parametrize(
    "text",
    [
        "He said “yes” — to them.", "I don’t know what it is.", "It costs £5 at the door, or € 6.",
        "© 2004 Some Company ®",
        "José García wrote it.", "It was 20 °C outside.", "• first\n• second", "Gödel, Escher, Bach", "crème brûlée",
        "That feeling of déjà vu again when we came home.", "The pâté was good and the wine was better.",
    ],
)  # fmt: skip
def test_the_signs_and_names_of_western_texts_need_no_more_evidence(text: str) -> None:
    assert decode(text.encode("cp1252")).text == text


@pytest.mark.parametrize("text", ["Beyoncé", "a café", "We met at a café in town.\nThen we went home.\n"])
def test_a_letter_of_an_older_encoding_at_the_end_of_a_word_is_no_opening_quote(text: str) -> None:
    """é in cp850 is 0x82, which in cp1252 is ‚."""
    try:
        assert decode(text.encode("cp850")).text == text
    except Refused:
        return


def test_romanian_is_read_with_the_commas_that_it_is_written_with() -> None:
    text = "știrile și cărțile din orașul liniștit"
    assert decode(text.encode("iso8859-16")).text == text
    with_cedillas = text.translate(str.maketrans("șț", "şţ"))
    assert decode(with_cedillas.encode("cp1250")).text == text


def test_turkish_keeps_its_cedillas() -> None:
    text = "Şehirde yaşayan şoförler işe gidiyor, akşam döner; güneş, gökyüzü ve ağaç"
    assert decode(text.encode("cp1254")).text == text


def test_a_record_and_the_ledger_say_how_sure_the_encoding_is(read: Callable[..., Outcome]) -> None:
    outcome = read("letter.txt", RUSSIAN.encode("cp1251"))
    (record,) = outcome.records
    assert record["encoding"] == "cp1251" and 0.9 < record["confidence"] < 1.0
    assert outcome.item["notes"] == f"cp1251 is a guess (confidence {record['confidence']:.2f})"
    table = "n,text\n" + "".join(f'{n},"{RUSSIAN}"\n' for n in range(3))
    rows = read("rows.csv", table.encode("koi8_r"))
    assert {r["encoding"] for r in rows.records} == {"koi8-r"} and all(0.9 < r["confidence"] < 1 for r in rows.records)
    assert [r["confidence"] for r in read("letter.txt", RUSSIAN.encode()).records] == [1.0]
