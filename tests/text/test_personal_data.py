"""The scrubber on sentences labelled by hand, English and Chinese: precision and recall."""

import random
import re
from itertools import pairwise

import pytest

from rlhf_jax.text.personal_data import (
    BLOCK,
    TRAINING_TEXT,
    TYPED,
    find,
    is_card,
    is_chinese_id,
    luhn,
    scrub,
    scrub_typed,
)

# {KIND:text} marks what is personal; everything else must stay.
LABELLED = """
Write to {EMAIL:ann.smith@example.org} before Friday.
My address is {EMAIL:j_doe+news@mail.example.co.uk}, thanks!
Mails: {EMAIL:a@b.io};{EMAIL:c.d@e-f.com}.
Call {PHONE:415-555-0132} or {PHONE:(212) 555-0199} after six.
Call me at {PHONE:+1 415 555 0132}.
From abroad: {PHONE:+44 20 7946 0958}, from Berlin {PHONE:+49-30-901820}.
{PHONE:1-800-555-0199} is toll free.
He paid with {CARD:4111 1111 1111 1111} yesterday.
Card {CARD:5500-0000-0000-0004}, expires 04/27.
Amex {CARD:378282246310005}.
Her SSN is {ID:219-09-9999}.
SSN: {ID:123 45 6789}
The server {IP:192.168.10.254} is down.
Ping {IP:8.8.8.8}, then {IP:2001:db8::ff00:42:8329}.
See {URL:https://example.org/a/b?c=d#e}.
Look ({URL:http://test.example.com/x}) and {URL:www.example.net/page}.
Download {URL:ftp://files.example.org/pub/a.tar.gz} now.
The year 2023 had 365 days and 8,765 hours.
Pi is 3.14159265358979 and e is 2.718281828.
Order 66 was given on 2005-05-19 at 10:30.
Version 1.2.3.4.5 fixed bug 123-456.
The population was 1,411,778,724 in 2020.
ISBN 978-3-16-148410-0 is a book.
He scored 100-99 and won 4 of 5.
The ratio 16:9 and the time 12:34:56 are not addresses.
Room 415-5550 is not a phone, nor is 555-01.
Twitter handles like @someone are public names.
The total of 1234 5678 9012 3456 is no card number.
She ran 10 000 000 steps.
1.2.3 and 256.300.1.2 are no addresses.
The file a.b@c has no domain.
GDP grew from 14.34 to 14.69 trillion in 2019-2020.
Coordinates 40.7128 -74.0060.
Serial 000-12-3456 cannot be issued.
The equation x+1234567890 holds.
我的邮箱是{EMAIL:wang.wei@example.cn}，请回复。
邮箱：{EMAIL:li_na@qq.example.com}。
电话{PHONE:13812345678}，随时联系。
手机号：{PHONE:186-1234-5678}。
座机是{PHONE:010-62345678}，上海{PHONE:021-52345678}。
请拨打{PHONE:+86 139 1234 5678}咨询。
身份证号{ID:11010519491231002X}，请核对。
他的身份证是{ID:440524198001010013}吗？
银行卡号{CARD:6222021000112345672}已冻结。
服务器地址{IP:10.0.0.12}无法访问。
网址是{URL:https://www.example.cn/新闻}，请查看。
详见{URL:http://example.com/a}。
二〇二三年共有365天，2023年10月1日是国庆。
人口为1411778724人，增长0.1%。
身份证号110105194912310021校验位不对。
圆周率约为3.1415926535。
共花费12345678元，折合1234567美元。
第13812号文件，第010号房间。
比分是3:2，时间是12:30:45。
邮编100084，车次G1234。
""".strip().splitlines()
# Written after the rules, and the rules not changed for them.
UNSEEN = """
Reach the desk on {PHONE:646.555.0144} any day, or mail {EMAIL:help-desk@corp.example.com}.
Contact: Dr. Lee ({EMAIL:lee@uni-x.example.edu}), tel. {PHONE:+33 1 70 18 99 00}.
Fax {PHONE:(305)555-0107}; the form has 14 pages.
WhatsApp {PHONE:+5511987654321} please.
Extension 4417, floor 12, suite 300.
Visa {CARD:4012888888881881} was declined at 12:45.
Charge it to {CARD:6011 1111 1111 1117}, please.
I was born on 12/05/1987 and moved in 2004.
tax id {ID:078-05-1120} belonged to a secretary
Host {IP:172.16.0.3}:8080 answers, build 4.15.0-112 does not.
Blocked {IP:fe80::1} and {IP:203.0.113.77}.
Docs at {URL:https://docs.example.io/en/latest/}; mirror: {URL:www.mirror.example.org}.
Visit example.com for more.
Invoice 2023-000-1187 is due, 1,250.00 EUR.
The 1990s had 10 winters below -20.5 degrees.
Isaiah 40:31 and John 3:16.
Set theta to 0.0001 and batch to 512.
He drove 1-95 at 65-70 mph for 200 miles.
{EMAIL:first.last@sub.domain.example} wrote: call {PHONE:1 (650) 555-0123}
联系人张三，手机{PHONE:15900001234}，邮箱{EMAIL:zhangsan@163.example.com}。
客服热线{PHONE:400-810-8888}，工作日9:00-18:00。
公司电话：{PHONE:0755-26012345}转808。
请汇款至{CARD:6228480000000000018}，户名李四。
身份证{ID:330102199003071230}已登记。
登录{URL:http://login.example.com.cn/user?id=7}查看。
内网{IP:192.168.1.1}，端口3306。
我的QQ号是一个秘密，房间号8808。
2024年第15周，销量为1388888件。
航班CA1385，座位23A，票价1280元。
楼高632米，共128层。
微信同号{PHONE:177 0123 4567}。
订单号202310150001234567，请保存。
""".strip().splitlines()
# What touches: numbers joined by a slash or comma, a number and what another rule finds.
JOINED = """
{PHONE:13812345678}/{PHONE:13912345678}/{PHONE:13712345678}
{PHONE:13812345678},{PHONE:13912345678}
{CARD:4111111111111111}/{PHONE:13812345678},{PHONE:010-62345678}/{PHONE:1-800-555-0199}
{ID:11010519491231002X},{ID:219-09-9999}/{PHONE:415-555-0132}
{PHONE:13812345678}{URL:http://x.org/a/}
{PHONE:+8613812345678}{PHONE:+8613912345678}
{IP:10.0.0.1}/{IP:10.0.0.2}
No number: 13812345678/5, 13812345678,5 and 2023/13812345678, path/13812345678.
""".strip().splitlines()
PIECES = (
    *("13812345678", "139-1234-5678", "010-62345678", "415-555-0132", "(212)555-0199"),
    *("+8613812345678", "1-800-555-0199", "4111111111111111", "378282246310005", "219-09-9999"),
    *("11010519491231002X", "8.8.8.8", "2001:db8::1", "http://x.org/a/", "www.example.net"),
    *("ftp://a.b", "ann@example.org", "a@b.io", "[PHONE]", "[URL]", "a", "1", "12", "中"),
)
GLUE = ("", "", "", " ", *",/.-@:+_();<>，、", "//", "www.", "http://")
MARK = re.compile(r"\{([A-Z]+):([^}]*)\}")


def parse(line):
    """(text, what is personal in it)."""
    text, wanted, at = "", set(), 0
    for match in MARK.finditer(line):
        text += line[at : match.start()]
        wanted.add((match[1], len(text), len(text) + len(match[2])))
        text += match[2]
        at = match.end()
    return text + line[at:], wanted


def counts(lines):
    right = found_ = wanted_ = 0
    for line in lines:
        text, wanted = parse(line)
        found = {tuple(personal) for personal in find(text)}
        right, found_, wanted_ = (
            right + len(found & wanted),
            found_ + len(found),
            wanted_ + len(wanted),
        )
    return right, found_, wanted_


def chinese(line):
    return any("\u4e00" <= char <= "\u9fff" for char in line)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_precision_and_recall(language):
    lines = [line for line in LABELLED if chinese(line) == (language == "zh")]
    right, found, wanted = counts(lines)
    assert wanted >= 12
    assert right / found >= 0.95, "precision"
    assert right / wanted >= 0.95, "recall"


def test_precision_and_recall_on_unseen_sentences():
    """What docs/safety.md reports: rules made for other sentences, of the same author."""
    right, found, wanted = counts(UNSEEN)
    assert wanted >= 25
    assert right / found >= 0.9 and right / wanted >= 0.85


@pytest.mark.parametrize("line", LABELLED + JOINED)
def test_what_is_found_is_replaced_and_nothing_else(line):
    text, wanted = parse(line)
    assert scrub(text) == MARK.sub(lambda match: f"[{match[1]}]", line)
    assert scrub(scrub(text)) == scrub(text)
    assert len(find(text)) == len(wanted)


@pytest.mark.parametrize(
    "text,clean",
    [
        ("mail jo.doe+x@mail.example.org now", "mail [EMAIL] now"),
        ("card 4111 1111 1111 1111.", "card [CARD]."),
        ("order 4111 1111 1111 1112.", "order 4111 1111 1111 1112."),  # wrong check digit
        ("IBAN DE89 3704 0044 0532 0130 00", "IBAN [IBAN]"),
        ("IBAN DE88 3704 0044 0532 0130 00", "IBAN DE88 3704 0044 0532 0130 00"),
        ("身份证11010519491231002X，", "身份证[ID]，"),
        ("身份证110105194912310021，", "身份证110105194912310021，"),
        ("请打13812345678或+86 138-1234-5678", "请打[PHONE]或[PHONE]"),
        ("call +44 20 7946 0958 or (212) 555-0187", "call [PHONE] or [PHONE]"),
        ("ssn 078-05-1120", "ssn [ID]"),
        ("host 192.168.0.12, 2001:db8::8a2e:370:7334", "host [IP], [IP]"),
        ("version 1.2.3.4000 at 12:30:45", "version 1.2.3.4000 at 12:30:45"),
        ("https://me:secret@host/x", "[URL]"),
        ("compare https://example.org/a with www.example.net", None),  # what a prompt is about
        # What may be part of something longer: a store does not keep it, training text does.
        ("QQ13812345678", "QQ[PHONE]"),
        ("/415-555-0132", "/[PHONE]"),
        ("no4111111111111111", "no[CARD]"),
        ("172.16.0.3:8080", "[IP]:8080"),
        ("王@例子.cn", "[EMAIL]"),
        ("我的邮箱是wang.wei@example.cn。", "我的邮箱是[EMAIL]。"),
        ("all of x[::]", None),
        ("mail <EMAIL> or [EMAIL]", None),  # cleaned before, with either bracket
        ("In 1984, 3.14159 and 2024-05-06 are fine", "In 1984, 3.14159 and 2024-05-06 are fine"),
    ],
)
def test_what_people_type(text, clean):
    assert scrub_typed(text) == (clean or text)


@pytest.mark.parametrize("line", LABELLED)
def test_what_people_type_is_scrubbed_wherever_training_text_is(line):
    """But for URLs without a password, and by no other kind."""
    text, wanted = parse(line)
    wanted = {personal for personal in wanted if personal[0] != "URL"}
    assert wanted <= {tuple(personal) for personal in find(text, TYPED)}


@pytest.mark.parametrize("text", ["QQ13812345678", "path/415-555-0132", "no4111111111111111"])
def test_training_text_keeps_what_may_be_part_of_something_longer(text):
    assert scrub(text) == text


def test_bank_accounts_in_training_text():
    assert scrub("to DE89 3704 0044 0532 0130 00, not DE88370400440532013000") == (
        "to [IBAN], not DE88370400440532013000"
    )


@pytest.mark.parametrize("rules", [TRAINING_TEXT, TYPED], ids=["training", "typed"])
def test_scrubbed_text_stays_as_it_is(rules):
    """Whatever touches whatever: nothing is left to find, and a second pass changes nothing."""
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choice(PIECES) + draw.choice(GLUE) for _ in range(draw.randint(2, 6)))
        once = scrub(text, rules)
        assert find(once, rules) == [] and scrub(once, rules) == once, text


def test_check_digits():
    assert luhn("4111111111111111") and not luhn("4111111111111112")
    assert not is_card("0000 0000 0000 0000")
    assert is_chinese_id("11010519491231002X") and not is_chinese_id("110105194912310021")


def test_found_places_do_not_overlap():
    text = "mail me at https://user@example.org/4111111111111111 or bob@10.0.0.1.example.com"
    found = find(text)
    for first, second in pairwise(found):
        assert first.end <= second.start
    assert found[0].kind == "URL"


def test_random_text_terminates_quickly():
    """No form backtracks for ever."""
    for text in ("1-" * 4000, "a.b@" * 4000, ":" * 8000, "+1 " * 4000, "9" * 8000, "www." * 4000):
        find(text)
    assert len(find("+8613812345678" * 600)) == len(find("13812345678/" * 600)) == 600


@pytest.mark.parametrize(
    "found, kind",
    [
        ("ann@example.org", "EMAIL"),
        ("415-555-0132", "PHONE"),
        ("MT84 MALT 0110 0001 2345 MTLC AST0 01S", "IBAN"),
    ],
)
def test_a_long_text_is_cut_between_forms(found, kind):
    """Wherever the cut between two pieces would fall, and in the pieces behind it."""
    for length in range(BLOCK - len(found) - 3, BLOCK + 3):
        before = ("seven letters " * BLOCK)[: length - 1] + "\n"
        text = f"{before}{found} or {found}, then {before}{found}"
        marked = f"{before}[{kind}] or [{kind}], then {before}[{kind}]"
        assert scrub(text) == marked, length
