"""E-mail: what was typed comes back, thread by thread; lists, robots, quotes and signatures are left out and counted.

Mailboxes are written by the standard library's ``mailbox`` or as RFC 4155 and Gmail's Takeout have them.
"""

import mailbox
import time
import zipfile
from contextlib import closing
from datetime import datetime
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.brain import reading
from tests.brain.reading import document, put
from twin.brain import load
from twin.brain.document import members
from twin.brain.importers import mbox, pick
from twin.dropped import Dropped
from twin.records import Conversation, Message

POSTMARK = "From 1787800000000000001@xxx Tue Jan 09 18:42:11 +0000 2024"
ANA, BETO = "Ana Roca <ana@x.org>", "Beto <beto@y.org>"


def mail(text="hi", sender=ANA, to=BETO, **fields):
    """Return a mail as a mailbox holds it; ``content_type="…"`` is the field Content-Type, None leaves a field out."""
    fields = {"subject": "Lunch", "date": "Tue, 09 Jan 2024 18:42:10 +0000", **fields}
    head = {"From": sender, "To": to, **{name.replace("_", "-"): value for name, value in fields.items()}}
    lines = [POSTMARK, *(f"{name}: {value}" for name, value in head.items() if value is not None), "", text, "", ""]
    return "\n".join(lines)


def read(*mails):
    data = [one if isinstance(one, bytes) else one.encode() for one in mails]
    put("All mail.mbox", b"".join(data))
    return reading.read(mbox, "All mail.mbox", "m")


def only(*mails):
    """Return the one text that mails become, or the reason why they become none."""
    found, skipped = read(*mails)
    if found:
        assert not skipped
        assert [len(one.messages) for one in found] == [1]
        return found[0].messages[0].text
    assert list(skipped.values()) == [1]
    return next(iter(skipped))


TAKEOUT = f"""{POSTMARK}
X-GM-THRID: 1787800000000000001
X-Gmail-Labels: =?UTF-8?Q?Posteingang,Ge=C3=B6ffnet?=
Delivered-To: ana@x.org
From: =?UTF-8?Q?Beto_D=C3=ADaz?= <Beto@y.org>
To: ana@x.org
Date: Tue, 9 Jan 2024 19:50:00 +0100
Message-ID: <2@y.org>
Subject: Re: Lunch
Content-Type: multipart/alternative; boundary="000000000000a1"

--000000000000a1
Content-Type: text/plain; charset="UTF-8"
Content-Transfer-Encoding: quoted-printable

S=C3=AD, at one!

On Tue, Jan 9, 2024 at 6:42=E2=80=AFPM Ana Roca <ana@x.org>
wrote:

> Shall we?
>

--000000000000a1
Content-Type: text/html; charset="UTF-8"

<div dir="ltr">S&iacute;, at one!</div>

--000000000000a1--

{POSTMARK}
X-GM-THRID: 1787800000000000001
X-Gmail-Labels: Gesendet
From: Ana Roca <ana@x.org>
To: Beto@y.org
Date: Tue, 9 Jan 2024 18:42:10 +0000
Message-ID: <1@x.org>
Subject: Lunch
Content-Type: text/plain; charset="UTF-8"

Shall we?

>From here it is near.

-- 
Ana Roca
+34 600 000 000

{POSTMARK}
X-GM-THRID: 99
X-Gmail-Labels: Spam,Category Promotions
From: Prince <prince@z.org>
Subject: Money

Dear friend

"""  # noqa: W291


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_takeout(end):
    found, skipped = read(TAKEOUT.replace("\n", end))
    assert found == [
        Conversation(
            "m/0",
            (
                Message("Ana Roca", "Shall we?\n\nFrom here it is near.", datetime(2024, 1, 9, 18, 42, 10)),
                Message("Beto Díaz", "Sí, at one!", datetime(2024, 1, 9, 18, 50)),
            ),
        )
    ]
    assert skipped == {"spam": 1}


def threads(*mails):
    return [[said.text for said in one.messages] for one in read(*mails)[0]]


def on(day):
    return f"{day} Jan 2024 10:00:00 +0000"


def test_threads():
    assert threads(
        mail("c", BETO, ANA, message_id="<c@y>", references="<a@x> <gone@x>\n <b@y>", subject="Moved", date=on(4)),
        mail("a", message_id="<a@x>", date=on(1)),
        mail("other", message_id="<o@x>", date=on(2)),
        mail("d", message_id="<d@x>", in_reply_to="<c@y> from Beto", date=on(5)),
        mail("b", BETO, ANA, message_id="<b@y>", in_reply_to="<a@x>", date=on(3)),
    ) == [["a", "b", "c", "d"], ["other"]]


@pytest.mark.parametrize("prefix", ["Re: ", "RE: Re: ", "AW: ", "SV: ", "Re[2]: ", "回复："])
def test_threads_without_references(prefix):
    cy = "cy@z.org"
    assert threads(
        mail("long ago", date=on(1)),
        mail("a", date=on(2)),
        mail("to another", to=cy, date=on(3)),
        mail("b", BETO, "Ana <ANA@x.org>", subject=f"{prefix}lunch", date=on(4)),
        mail("answers another", cy, ANA, subject=f"{prefix}Lunch", date=on(5)),
        mail("answers nobody", subject=f"{prefix}Dinner", date=on(6)),
        mail("answers a lost one", subject=f"{prefix}Lunch", in_reply_to="<lost@x>", date=on(7)),
    ) == [["long ago"], ["a", "b"], ["to another", "answers another"], ["answers nobody"], ["answers a lost one"]]


def test_without_a_date_the_mailbox_has_one():
    found, _ = read(mail("b", date=None), mail("a", date="yesterday"), mail("c", date=on(8)))
    assert [one.messages[0].at for one in found] == [datetime(2024, 1, 8, 10), *[datetime(2024, 1, 9, 18, 42, 11)] * 2]


def test_a_thread_without_dates_stays_in_its_order():
    undated = mail("b", in_reply_to="<a@x>", date=None).replace(POSTMARK, "From ")
    found, _ = read(mail("a", message_id="<a@x>"), undated)
    assert [(said.text, said.at) for said in found[0].messages] == [
        ("a", datetime(2024, 1, 9, 18, 42, 10)),
        ("b", None),
    ]


def test_speakers():
    mails = [
        mail(sender=ANA),
        mail(sender='"Ana Roca" <ANA@x.org>'),
        mail(sender="ana@x.org"),
        mail(sender="Ana Roca <drive@docs.org>"),  # the busier address has the name
        mail(sender="Beto <beto@y.org>"),
        mail(sender="B. Díaz <beto@y.org>"),  # no stable name
        mail(sender="Cy <cy@z.org>"),
        mail(sender="Cy <cy@other.org>"),  # nobody knows who is Cy
        mail(sender='"dan@work.org" <dan@d.org>'),
        mail(sender="=?iso-8859-1?q?Eva_Pe=F1a?= <eva@e.org>"),
        mail(sender="Jo =?utf-8?q?P=C3=A9rez?= <jo@j.org>"),
        mail(sender="Fé <fe@f.org>").encode("latin-1"),
    ]
    found, _ = read(*mails)
    assert [one.messages[0].speaker for one in found] == [
        *["Ana Roca"] * 3,
        *(
            "drive@docs.org",
            "beto@y.org",
            "beto@y.org",
            "cy@z.org",
            "cy@other.org",
            "dan@d.org",
            "Eva Peña",
            "Jo Pérez",
            "Fé",
        ),
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"list_id": "<talk.x.org>"}, "mailing list"),
        ({"list_unsubscribe": "<https://x.org/u>"}, "mailing list"),
        ({"precedence": "bulk"}, "mailing list"),
        ({"precedence": "Junk"}, "mailing list"),
        ({"auto_submitted": "auto-replied (vacation)"}, "automatic mail"),
        ({"precedence": "auto_reply"}, "automatic mail"),
        ({"x_autoreply": "yes"}, "automatic mail"),
        ({"content_type": "multipart/report; boundary=b"}, "automatic mail"),
        ({"sender": "Shop <no-reply+12@shop.org>"}, "automatic mail"),
        ({"sender": "Mail <MAILER-DAEMON@x.org>"}, "automatic mail"),
        ({"x_gmail_labels": "Inbox,Spam"}, "spam"),
        ({"x_gmail_labels": "=?UTF-8?B?0KHQv9Cw0Lw=?="}, "spam"),
        ({"x_gmail_labels": "Drafts"}, "draft"),
        ({"sender": None}, "broken mail"),
        ({"sender": "nobody"}, "broken mail"),
        ({"sender": "<"}, "broken mail"),
        ({"content_type": "multipart/encrypted; boundary=b"}, "encrypted mail"),
        ({"text": "-----BEGIN PGP MESSAGE-----\n\nabc\n"}, "encrypted mail"),
        ({"text": "", "content_type": "image/png"}, "media"),
        ({"text": "BEGIN:VCALENDAR", "content_type": "text/calendar"}, "media"),
        ({"text": " \n"}, "media"),
        ({"text": "> all\n> quoted"}, "mail without words of its own"),
        ({"text": "-- \nAna"}, "mail without words of its own"),
        ({"text": "Begin forwarded message:\n\n> From: Cy\n> Hello", "subject": "Fwd: news"}, "forward"),
        ({"text": "---------- Forwarded message ---------\nFrom: Cy\nTo: me\n\nHello", "subject": "WG: x"}, "forward"),
    ],
)
def test_what_is_no_speech(fields, reason):
    assert only(mail(**fields)) == reason


def test_a_mail_twice_is_one():
    assert read(mail("hi", message_id="<1@x>"), mail("hi", message_id="<1@x>"))[1] == {"duplicate": 1}


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("Yes!\n\nOn Tue, Jan 9, 2024 at 6:42 PM Ana <ana@x.org> wrote:\n> shall we?\n>> when?", "Yes!"),
        ("Sí\n\nEl mar, 9 ene 2024 a las 18:42, Ana Roca (<ana@x.org>)\nescribió:\n\n> ¿vamos?", "Sí"),
        ("Sim\n\nEm ter., 9 de jan. de 2024 às 18:42, Ana <ana@x.org> escreveu:\n> vamos?", "Sim"),
        ("Tamam\n\nAna <ana@x.org>, 9 Oca 2024 Sal, 18:42 tarihinde şunu yazdı:\n> hadi", "Tamam"),
        ("はい\n\n2024年1月9日(火) 18:42 Ana <ana@x.org>:\n> 行く？", "はい"),
        ("好\n\nAna <ana@x.org> 于2024年1月9日周二 18:42写道：\n> 走？", "好"),
        ("Ja\n\nAna Roca schrieb:\n> kommst du?", "Ja"),
        ("On 9 Jan 2024, Ana wrote:\n> who?\nme\n\n> when?\n\nnow:\n> why?\nso", "me\n\nnow:\nso"),
        ("Meet at 10:30:\nOn 9 Jan 2024, Ana wrote:\n> a\n> b\n\n> c", "Meet at 10:30:"),
        ("Ok\n\n________________________________\nFrom: Ana\nSent: Tuesday\nTo: Beto\nSubject: x\n\nold", "Ok"),
        ("Gut\n\nVon: Ana <ana@x.org>\nGesendet: Dienstag\nAn: Beto\nBetreff: x\n\nalt", "Gut"),
        ("Bien\n\n*De :* Ana\n*Envoyé :* mardi\n*À :* Beto\n\nvieux", "Bien"),
        ("Ok\n\n-----Original Message-----\nFrom: Ana\nTo: Beto\n\nold", "Ok"),
        ("Siehe unten\n\n-------- Weitergeleitete Nachricht --------\nBetreff: x\n\nalt", "Siehe unten"),
        ("hi\n-- \nAna\n+34", "hi"),
        ("hi\n--\nAna", "hi"),
        ("hi\n\nSent from my iPhone", "hi"),
        ("hi\n\nVon meinem iPhone gesendet\n", "hi"),
        ("hi\n\nEnviado desde mi Samsung Galaxy", "hi"),
        ("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nhi\n-----BEGIN PGP SIGNATURE-----\nabc", "hi"),
        # What looks alike and is speech.
        ("Bring:\n- bread\n- wine\n\nBest,\nAna", "Bring:\n- bread\n- wine\n\nBest,\nAna"),
        ("Thanks, that helps.\nCould you call?", "Thanks, that helps.\nCould you call?"),
        ("From: the kitchen\nwith love", "From: the kitchen\nwith love"),
        ("---- news ----\nwe won", "---- news ----\nwe won"),
        ("Sent from the office yesterday, got it?", "Sent from the office yesterday, got it?"),
        ("She said:\n> never\nand left", "She said:\nand left"),
        ("a\n\n\n\n\nb  ", "a\n\nb"),
    ],
)
def test_own_words(text, own):
    assert mbox.own_words(text) == own


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<html><head><style>p {}</style></head><body>hi<br>there &amp; &#x1F600;&lt;3</body>", "hi\nthere & 😀<3"),
        ('<div dir="ltr">one</div>\n<div><br></div>\n<div>two</div>', "one\n\ntwo"),
        ("<p>one</p><p>two\n words</p>", "one\n\ntwo words"),
        ("<p class=MsoNormal>1<o:p></o:p></p><p class=MsoNormal><o:p>&nbsp;</o:p></p><p class=MsoNormal>2", "1\n\n2"),
        ("<ul><li>a<li>b</ul>c", "a\nb\nc"),
        ("a < b &notanentity; AT&T <!-- no --> c<script>x < y</script>!", "a < b ¬anentity; AT&T c!"),
        ('<blockquote style="margin:0 0 0 40px; border: none"><div>moved in</div></blockquote>', "moved in"),
        ('hi<blockquote type="cite"><blockquote>old</blockquote>older</blockquote>new', "hi\n>\nnew"),
        ('hi<div class="gmail_signature">Ana<div>+34</div></div>', "hi"),
        ("hi<!-- never closed", "hi"),
        ("hi <b", "hi"),
        ("hi<style>never closed", "hi"),
    ],
)  # fmt: skip
def test_html(page, text):
    assert mbox.html_text(page).strip() == text


def test_a_mail_of_html_alone():
    page = (
        '<div dir="ltr">S=ED</div><br><div class="gmail_quote"><div dir="ltr" class="gmail_attr">On Tue, Jan 9, 2024'
        ' at 6:42=A0PM Ana &lt;<a href="mailto:ana@x.org">ana@x.org</a>&gt; wrote:<br></div>'
        '<blockquote class="gmail_quote">shall we?</blockquote></div>'
    )
    fields = {"content_type": "text/html; charset=iso-8859-1", "content_transfer_encoding": "quoted-printable"}
    quoted = page.replace('"', "=22").replace("dir==22ltr=22", "dir=3D=22ltr=22").replace("class==22", "class=3D=22")
    assert only(mail(quoted, **fields)) == "Sí"


@pytest.mark.parametrize(
    ("content_type", "data", "text"),
    [
        ("text/plain; charset=utf-8", "ñ😀".encode(), "ñ😀"),
        ("text/plain; charset=ISO-8859-1", b"\x93ol\xe9\x94 \x80", "“olé” €"),  # as most say who mean Windows
        ("text/plain; charset=us-ascii", "ñ".encode(), "ñ"),
        ("text/plain; charset=us-ascii", b"\xf1", "ñ"),
        ("text/plain", b"\xf1", "ñ"),
        ("text/plain; charset=utf-8", b"ol\xe9", "olé"),
        ("text/plain; charset=koi8-r", "привет".encode("koi8-r"), "привет"),
        ("text/plain; charset=iso-2022-jp", "はい".encode("iso-2022-jp"), "はい"),
        ("text/plain; charset=x-unknown", "ñ".encode(), "ñ"),
        ("text/plain; charset=punycode", b"abc-", "abc-"),
        ("text/plain; charset=rot13", b"abc", "abc"),
        ("text/plain; charset=", b"abc", "abc"),
        ("text/plain; charset=utf-8", b"\xff\x81\x8d", "\ufffd\ufffd\ufffd"),
    ],
)
def test_charsets(content_type, data, text):
    assert only(mail("@@", content_type=content_type).encode().replace(b"@@", data)) == text


def test_paragraphs_that_flow():
    flowed = {"content_type": "text/plain; charset=utf-8; format=flowed"}
    text = "one \nline\n\n From home \n \n> quoted \n> too\ntwo\n-- \nAna"
    assert only(mail(text, **flowed)) == "one line\n\nFrom home\ntwo"
    assert only(mail("日本 \n語", content_type="text/plain; format=flowed; delsp=yes")) == "日本語"


def test_a_chat_of_today_and_one_of_old():
    talk = (
        '<con:conversation xmlns:con="google:archive:conversation">'
        '<cli:message to="ana@x.org" from="beto@y.org/Talk.v1" int:cid="1"'
        ' xmlns:cli="jabber:client"><cli:body>hi &amp; bye</cli:body><x stamp="20131115T12:55:25"'
        ' xmlns="jabber:x:delay"/><time ms="1384520125498" xmlns="google:timestamp"/></cli:message>\n<cli:message'
        ' to="beto@y.org" from="ana@x.org"><cli:body>&gt;: yo</cli:body></cli:message><cli:message from="ana@x.org">'
        "</cli:message></con:conversation>"
    )
    chat = {"x_gmail_labels": "Chat", "x_gm_thrid": "7", "date": None}
    xml = mail(talk, BETO, ANA, content_type="text/xml; charset=utf-8", message_id="<1.chat@gmail.com>", **chat)
    new = [mail(text, "no-reply@y.org", subject=None, **{**chat, "x_gm_thrid": "8"}) for text in ("> a", "-- \nb")]
    found, skipped = read(xml, *new)
    assert [[(said.speaker, said.text) for said in one.messages] for one in found] == [
        [("ana@x.org", ">: yo"), ("beto@y.org", "hi & bye")],
        [("no-reply@y.org", "> a"), ("no-reply@y.org", "-- \nb")],
    ]
    assert found[0].messages[1].at == datetime(2013, 11, 15, 12, 55, 25, 498_000)
    assert not skipped
    assert only(xml.replace("cli:body", "cli:event")) == "Gmail's own message"


def test_parts():
    whole = EmailMessage()
    whole["From"] = ANA
    whole.set_content("above the picture")
    whole.add_attachment(b"\x89PNG" * 9, "image", "png", filename="a.png")
    whole.add_attachment("somebody's file", filename="notes.txt")
    whole.add_attachment("shown below the mail", filename="more.txt", disposition="inline")
    inner = EmailMessage()
    inner["From"] = BETO
    inner.set_content("a mail within")
    whole.add_attachment(inner)
    below = EmailMessage()
    below.set_content("below it")
    whole.attach(below)
    assert only(f"{POSTMARK}\n{whole.as_string()}\n\n") == "above the picture\n\n\nbelow it".replace("\n\n\n", "\n\n")


def test_large_mails_are_cut_and_the_next_is_found():
    long = mail("x" * 999 + "\n" + "y\n" * (1 << 20))
    found, skipped = read(long, mail("next"))
    assert skipped == {"rest of a mail of over 1 MiB": 1}
    assert [len(one.messages[0].text) for one in found] == [pytest.approx(1 << 20, rel=0.01), 4]


def test_lines_that_only_look_like_a_postmark():
    body = "hello\nFrom me at 10:30 in 2024\nNote: x\n\nFrom here on 10:30 2024\nit goes on\n\nFrom now on: ok\nNote: y"
    assert only(mail(body)) == body


@pytest.mark.parametrize("name", ["Inbox.mbox", "Takeout/Mail/Alle E-Mails.mbox", "Sent.mbox/mbox", "Inbox"])
def test_it_is_found_by_its_beginning(name):
    source = put(f"brain/{name}", mail("hi", in_reply_to="<1>") + mail("yo", BETO, ANA, in_reply_to="<1>"))
    assert pick(source, source.head()) is mbox
    talk = next(load([Path("brain")], "ana@x.org", {"Ana": ["ana@x.org", "Ana Roca"]}).conversations())
    assert [(said.speaker, said.text) for said in talk.messages] == [("Ana", "hi"), ("Beto", "yo")]


# Was wrong once: what is cut off a mail is not counted. What is cut off an attachment is nobody's words.
def test_only_words_that_are_cut_off_are_counted(monkeypatch):
    monkeypatch.setattr(mbox, "MAX_MAIL", 1000)
    kinds = {"plain": ["text/plain"], "other": ["text/plain; name=a.txt", "application/pdf", "image/png"]}
    for kind in kinds["plain"] + kinds["other"]:
        parts = f"--b\n\nhi there\n--b\nContent-Type: {kind}\n\n" + "words\n" * 500 + "--b--"
        found, skipped = read(mail(parts, content_type="multipart/mixed; boundary=b"))
        assert found[0].messages[0].text.startswith("hi there")
        assert skipped == ({"rest of a mail of over 1 MiB": 1} if kind in kinds["plain"] else {})
    assert read(mail("x" * 1200 + "\n\n\n"))[1] == {}  # blank lines alone are cut
    both = "--b\n\nhi there\n--b\nContent-Type: text/html\n\n" + "<p>hi there</p>\n" * 500 + "--b--"
    assert read(mail(both, content_type="multipart/alternative; boundary=b"))[1] == {}


def test_in_a_zip():
    put("mail.mbox", TAKEOUT)
    with zipfile.ZipFile("takeout.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.write("mail.mbox", "Takeout/Mail/All mail Including Spam and Trash.mbox")
    (inside,) = members(document("takeout.zip"))
    assert pick(inside, inside.head()) is mbox
    assert [len(one.messages) for one in mbox.read(inside, Dropped())] == [2]


@pytest.mark.parametrize("content", ["From the start 10:30 2024\nit rained", "Dear diary", f"{POSTMARK}\nno header"])
def test_others_are_not_claimed(content):
    for name in ("x.mbox", "x.txt", "x"):
        assert not mbox.sniff(put(name, content), content.encode())
    assert not mbox.sniff(put("x.txt", mail()), mail().encode())


HOSTILE = (
    "<a ",
    "<!--",
    "<",
    "<a b='",
    "</",
    "&#9",
    "<blockquote>",
    "<style",
    "From: x\n",
    "> a:\n",
    "On 10:30 ",
    "-",
    "- ",
)
HOSTILE += (": ", "(", "=?", "=?a?q?", "_", "Re: ", " \n", "<message from=", "<cli:body>", "@:\n> \n", "\u2028", "\t")


@pytest.mark.parametrize("part", HOSTILE)
def test_nothing_takes_long(part):
    long = part * (150_000 // len(part))
    began = time.process_time()
    mbox.html_text(long)
    mbox.own_words(long)
    chat = {"x_gmail_labels": "Chat", "content_type": "text/xml"}
    field = long.replace("\n", "\n ")
    read(mail(f"google:archive:conversation{long}", **chat), mail(subject=field, x=field), mail(sender=f"{field}<a@b>"))
    assert time.process_time() - began < 2  # a tenth of a second is usual


words = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters=">-_:：\ufffc"), min_size=1
)
texts = (
    st.lists(words.map(str.strip).filter(bool), min_size=1, max_size=4).map("\n".join).filter(lambda text: text.strip())
)


@given(st.lists(st.tuples(st.booleans(), texts, st.sampled_from(["base64", "quoted-printable", "8bit"])), max_size=5))
def test_what_was_typed_comes_back(talk):
    Path("round.mbox").unlink(missing_ok=True)
    with closing(mailbox.mbox("round.mbox")) as box:
        for number, (mine, text, encoding) in enumerate(talk):
            one = EmailMessage()
            one["From"], one["To"] = ("ana@x.org", "beto@y.org") if mine else ("beto@y.org", "ana@x.org")
            one["Message-ID"], one["References"] = f"<{number}@x.org>", "<first@x.org>"
            one["Date"] = datetime(2024, 1, 9, 12, number)
            one.set_content(text, cte=encoding)
            if not mine:
                one.add_alternative("<p>as a page</p>", "html")
            box.add(one)
    found, skipped = reading.read(mbox, "round.mbox")
    said = [(said.speaker, said.text) for one in found for said in one.messages]
    assert said == [("ana@x.org" if mine else "beto@y.org", text) for mine, text, _ in talk]
    assert not skipped


names = st.sampled_from(["From", "To", "Cc", "Subject", "Date", "Message-ID", "References", "Content-Type"])
names |= st.sampled_from(["X-GM-THRID", "X-Gmail-Labels", "Content-Disposition", "MIME-Version", "Auto-Submitted"])
names |= st.just("Content-Transfer-Encoding")
pieces = st.sampled_from(
    ["<", ">", "(", '"', "=?utf-8?q?=e9?=", "=?x?b?!?=", "multipart/mixed; boundary=b", ";", "a@b", ":"]
)
pieces |= st.sampled_from(
    ["text/html; charset=", "text/plain", "base64", "Chat", "Tue, 99 Jan 99999 99:99 +9999", "ñ", "\\"]
)
heads = st.lists(st.tuples(names, st.lists(pieces, max_size=4).map(" ".join)), max_size=5)
bodies = st.lists(
    st.sampled_from(["--b", "--b--", "", "hi", "> x", "Content-Type: text/xml", "<p>", "=", "\0"]), max_size=6
)


@given(st.lists(st.tuples(heads, bodies), min_size=1, max_size=4))
def test_any_mails_are_read_or_counted(mails):
    made = [
        "\n".join([POSTMARK, "X: y", *(f"{name}: {value}" for name, value in head), "", *body, "", ""])
        for head, body in mails
    ]
    found, skipped = read(*made)
    assert sum(len(one.messages) for one in found) + sum(skipped.values()) == len(mails)


@given(st.lists(st.binary(max_size=20) | st.sampled_from([POSTMARK.encode(), b"", b"From: a@b", b"x"]), max_size=9))
def test_any_lines_are_read(some):
    lines = [POSTMARK.encode(), b"From: ana@x.org", b"", b"hi", b"", *some]
    found, skipped = read(b"\n".join(lines))
    assert sum(len(one.messages) for one in found) + sum(skipped.values()) >= 1
