"""WhatsApp exports: what is written in either layout and any date order comes back message by message."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.brain import reading
from tests.brain.reading import document
from twin.brain import document as documents
from twin.brain.importers import whatsapp
from twin.errors import UsageError
from twin.records import Message


def read(text, name="chat.txt"):
    """Return (messages, skipped) of an export."""
    Path("chat.txt").write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
    conversations, skipped = reading.read(whatsapp, "chat.txt", name)
    assert len(conversations) <= 1
    assert all(conversation.id == name for conversation in conversations)
    return [message for conversation in conversations for message in conversation.messages], skipped


# Was wrong once: the rest of a line that is too long is lost without a word.
def test_lines_that_are_cut_are_counted_once(monkeypatch):
    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 30)
    said, skipped = read("09/01/2024, 18:42 - Ana: a very long line\n09/01/2024, 18:43 - Bo: yo\n")
    assert [message.text for message in said] == ["a ver", "yo"]
    assert skipped == {"rest of a line of over 4 MiB": 1}


STYLES = {
    "android dmy": ("{d:02}/{m:02}/{y}, {H:02}:{M:02} - {who}: {text}", False),
    "android us": ("{m}/{d}/{yy:02}, {h}:{M:02}\u202f{half} - {who}: {text}", False),
    "android de": ("{d:02}.{m:02}.{yy:02}, {H:02}:{M:02} - {who}: {text}", False),
    "android sv": ("{y}-{m:02}-{d:02} {H:02}:{M:02} - {who}: {text}", False),
    "android it": ("{d:02}/{m:02}/{yy:02}, {H:02}.{M:02} - {who}: {text}", False),
    "android nl": ("{d:02}-{m:02}-{y} {H:02}:{M:02} - {who}: {text}", False),
    "ios": ("[{d:02}/{m:02}/{y}, {H:02}:{M:02}:{S:02}] {who}: {text}", True),
    "ios us": ("\u200e[{m}/{d}/{yy:02}, {h}:{M:02}:{S:02}\u202f{half}] {who}: {text}", True),
}


def export(messages, style, line_end="\n"):
    layout, _ = STYLES[style]
    lines = []
    for message in messages:
        at = message.at
        values = {"y": at.year, "yy": at.year % 100, "m": at.month, "d": at.day, "H": at.hour, "M": at.minute}
        values |= {"S": at.second, "h": at.hour % 12 or 12, "half": "PM" if at.hour >= 12 else "AM"}
        lines.append(layout.format(**values, who=message.speaker, text=message.text))
    return line_end.join(lines).replace("\n", line_end) + line_end


letters = st.characters(
    exclude_categories=["Cs", "Cc", "Cn", "Zl", "Zp", "Zs"], exclude_characters="\u200e\u200f\u202a\u202c\ufeff"
)
words = st.text(letters | st.sampled_from(" \n:,-[]<>"), min_size=1, max_size=40)


def is_speech(text):
    """Say whether nothing in ``text`` is WhatsApp's own notation."""
    clean = text == text.strip() and text != ""
    lines = text.split("\n")
    return clean and not any(whatsapp._START.match(line) for line in lines) and not whatsapp._MEDIA.fullmatch(lines[0])


speech = words.map(str.strip).filter(is_speech)
speakers = st.text(letters.filter(lambda letter: letter not in ':"'), min_size=1, max_size=12)
messages = st.lists(st.tuples(st.integers(0, 4), speech, st.integers(0, 86_400)), min_size=1, max_size=8)


@given(
    names=st.lists(speakers, min_size=5, max_size=5, unique=True),
    rows=messages,
    style=st.sampled_from(sorted(STYLES)),
    line_end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
)
def test_what_was_written_comes_back(names, rows, style, line_end, bom):
    at = datetime(2024, 3, 13, 9, 30)  # the 13th: the order of day and month can't be mistaken
    sent = []
    for who, text, seconds in rows:
        at += timedelta(seconds=seconds)
        whole = at if STYLES[style][1] else at.replace(second=0)
        sent.append(Message(names[who], text, whole))
    text = export(sent, style, line_end)
    assume(whatsapp.sniff(document("chat.txt"), text.encode()))
    assert read(("\ufeff" if bom else "") + text) == (sent, {})


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused_with_a_sentence(text):
    Path("chat.txt").write_bytes(text.encode("utf-8"))
    assert reading.read(whatsapp, "chat.txt")[0] == [] or whatsapp.sniff(document("x.txt"), text.encode())


@pytest.mark.parametrize("style", sorted(STYLES))
def test_each_style_is_sniffed(style):
    line = export([Message("Ana", "hi", datetime(2024, 12, 31, 23, 59, 58))], style)
    assert whatsapp.sniff(document("x.txt"), line.encode())
    assert whatsapp.sniff(document("x.TXT"), ("Some title\n" + line).encode())
    assert not whatsapp.sniff(document("x.md"), line.encode())


def test_bursts_and_lines_of_one_message_stay_apart():
    text = "09/01/2024, 18:42 - Ana: one\ntwo\n\nthree\n09/01/2024, 18:42 - Ana: four\n"
    assert [message.text for message in read(text)[0]] == ["one\ntwo\n\nthree", "four"]


def test_noon_and_midnight():
    text = "1/13/24, 12:05 AM - Ana: a\n1/13/24, 12:05 PM - Ana: b\n1/13/24, 11:05 p.m. - Ana: c\n"
    assert [message.at.hour for message in read(text)[0]] == [0, 12, 23]


@pytest.mark.parametrize(
    ("dates", "order"),
    [
        (["1/2/2024", "1/13/2024"], "mdy"),
        (["1/2/2024", "13/2/2024"], "dmy"),
        (["2024-02-13"], "ymd"),
        (["5/1/2024", "5/2/2024", "6/1/2024", "6/3/2024"], "mdy"),  # as dmy time would run backward
        (["1/5/2024", "2/5/2024", "1/6/2024"], "dmy"),
    ],
)
def test_the_date_order_is_settled_over_the_whole_file(dates, order):
    found = read("".join(f"{date}, 10:00 - Ana: x\n" for date in dates))[0]
    places = {"dmy": (2, 1, 0), "mdy": (2, 0, 1), "ymd": (0, 1, 2)}[order]
    expected = []
    for date in dates:
        parts = [int(part) for part in date.replace("-", "/").split("/")]
        year = parts[places[0]]
        expected.append((year + 2000 if year < 100 else year, parts[places[1]], parts[places[2]]))
    assert [(message.at.year, message.at.month, message.at.day) for message in found] == expected


def test_invisible_marks_are_no_part_of_names_or_words():
    text = "\u200e[09/01/2024, 18:42:10] \u202aAna\u202c: hi\u202f\u200ethere\n"
    assert read(text)[0] == [Message("Ana", "hi there", datetime(2024, 1, 9, 18, 42, 10))]


@pytest.mark.parametrize(
    "line",
    [
        "<Media omitted>",
        "<Medien ausgeschlossen>",
        "<Multimedia omitido>",
        "<attached: 00000012-PHOTO-2024-01-09.jpg>",
        "IMG-20240109-WA0001.jpg (file attached)",
        "image omitted",
        "\u200eGIF omitted",
        "Contact card omitted",
        "‹Mídia oculta›",
        "<Media weggelaten>",
        "<Без медиафайлов>",
        "<メディアは含まれていません>",
        "<تم استبعاد الوسائط>",
        "",
    ],
)
def test_media_is_no_speech(line):
    assert read(f"09/01/2024, 18:42 - Ana: {line}\n09/01/2024, 18:43 - Ana: real\n") == (
        [Message("Ana", "real", datetime(2024, 1, 9, 18, 43))],
        {"media": 1},
    )


@pytest.mark.parametrize(
    "said", ["the image omitted him", "<3", "<media> is a tag, you know", "omitted", "<sigh>", "a <b> c"]
)
def test_words_about_media_are_speech(said):
    assert [message.text for message in read(f"09/01/2024, 18:42 - Ana: {said}\n")[0]] == [said]


def test_whatsapp_speaking_is_no_speech():
    text = "09/01/2024, 18:42 - Messages are end-to-end encrypted.\n09/01/2024, 18:42 - Ana added Beto\n"
    assert read(text) == ([], {"WhatsApp's own message": 2})


def test_dates_that_fit_no_order():
    with pytest.raises(UsageError) as caught:
        read("32/13/2024, 18:42 - Ana: hi\n")
    assert (caught.value.message, caught.value.hint) == (
        "The dates of 'chat.txt' fit no order of day, month and year.",
        "Export the chat again.",
    )


# Once wrong elsewhere: "one locale's dates".
LOCALES = {
    "es": "13/1/24, 8:42\u202fp.\u00a0m. - Ana: hola",
    "fr": "13/01/2024 à 20:42 - Ana: hola",
    "hu": "2024. 01. 13. 20:42 - Ana: hola",
    "fi": "13.1.2024 klo 20.42 - Ana: hola",
    "da": "13.01.2024 kl. 20.42 - Ana: hola",
    "pl": "13.01.2024, 20:42 - Ana: hola",
    "tr": "13.01.2024 20:42 - Ana: hola",
    "bg": "13.01.2024 г., 20:42 ч. - Ana: hola",
    "el": "13/1/24, 8:42 μ.μ. - Ana: hola",
    "ja": "2024/01/13 午後8:42 - Ana: hola",
    "zh": "2024/1/13 下午8:42 - Ana: hola",
    "zh ios": "[2024/1/13 下午8:42:00] Ana: hola",
    "ko": "2024년 1월 13일 오후 8:42, Ana : hola",
    "ko ios": "[2024. 1. 13. 오후 8:42:00] Ana: hola",
    "ko short": "2024. 1. 13. 오후 8:42, Ana: hola",
    "ar": "\u200f١٣/١/٢٠٢٤، ٨:٤٢ م - Ana: hola",
    "hi": "13/01/24, 8:42 अपराह्न - Ana: hola",
}


@pytest.mark.parametrize("line", LOCALES.values(), ids=LOCALES)
def test_dates_of_other_locales(line):
    line = f"{line}\n"
    assert whatsapp.sniff(document("chat.txt"), line.encode())
    assert read(line)[0] == [Message("Ana", "hola", datetime(2024, 1, 13, 20, 42))]


# Once wrong elsewhere: "system messages as speech". iOS puts a name and U+200E before them.
@pytest.mark.parametrize(
    "text",
    [
        "[09/01/24, 18:42:10] Beto: \u200eMessages and calls are end-to-end encrypted.\n",
        "[09/01/24, 18:42:10] Beto: \u200eThis message was deleted.\n",
        "[09/01/24, 18:42:10] Beto: \u200eMissed voice call\n",
        "09/01/2024, 18:42 - Beto: This message was deleted\n",
        "09/01/2024, 18:42 - Beto: Diese Nachricht wurde gelöscht.\n",
        "09/01/2024, 18:42 - Beto: Se eliminó este mensaje.\n",
        '09/01/2024, 18:42 - Beto changed the group name from "a" to "trip: spain"\n',
    ],
)
def test_more_of_whatsapp_speaking(text):
    assert read(text)[0] == []


def test_the_mark_of_an_edit_is_no_speech():
    text = "[09/01/24, 18:42:10] Ana: yes \u200e<This message was edited>\n"
    assert [message.text for message in read(text)[0]] == ["yes"]


# Once wrong elsewhere: "media lines without brackets".
@pytest.mark.parametrize(
    "line",
    [
        "Media omitted",
        "My report v2.pdf (file attached)",
        "\u200eBild weggelassen",
        "RS.pdf • 14 pages <attached: 1-RS.pdf>",
        "1-PHOTO.jpg <attached>",
    ],
)
def test_more_media_is_no_speech(line):
    assert read(f"09/01/2024, 18:42 - Ana: {line}\n")[0] == []


def test_a_caption_stays_and_its_file_name_goes():
    text = "09/01/2024, 18:42 - Ana: IMG-1.jpg (file attached)\nlook at this\n"
    assert [message.text for message in read(text)[0]] == ["look at this"]


def test_a_line_that_only_looks_like_a_date_does_not_spoil_the_file():
    text = "09/01/2024, 18:42 - Ana: hi\n99/99/2024, 18:42 - pasted: yo\n"
    assert [message.text for message in read(text)[0]] == ["hi\n99/99/2024, 18:42 - pasted: yo"]
