from __future__ import annotations

from dataclasses import dataclass

import pytest

from glm4v_ops.quality.garble import has_text, judge, judge_answer
from glm4v_ops.quality.outcome import PASSED, Outcome
from glm4v_ops.recipe import TaskName

CAPTION = "Describe this image in two or three factual sentences. Do not guess what cannot be seen."
TEXT = "Read out all text in this image, line by line, exactly as written. If there is no text, answer with nothing."
CHINESE = "请用两三句话描述这张图片。不要猜测看不到的内容。"
KEY = "images/2026-11-20/IMG_0042.jpg"


@dataclass(frozen=True)
class Said:
    text: str
    finish_reason: str = "stop"


GOOD_CAPTIONS = [
    "A red circle and two small blue squares on a plain white background.",
    "Two people are sitting on a bench in a park. Behind them is a lake with three boats.",
    "A cat.",
    "A road sign reading “STOP” stands beside a narrow street, and a very, very old house is behind it.",
    "A mug with the words \"I'm sorry, I can't help it\" stands on a desk.",
    'A person holds a sign that says "I cannot" while a crowd watches.',
    "A screenshot of a login form with the fields User: and Password: and a blue button.",
    'The screen shows the path "/home/ann/pictures/cat.png" in a file manager.',
    "A book page with the heading 'The Assistant' and three paragraphs.",
    'A poster reads "NO NO NO NO NO" in large red letters.',
    "A café terrace with the name “Café”… in white letters, 20 °C on a display, and a price of £5.",
    "Un garçon à vélo devant l’église Saint-Rémy ; l’été, près d’un marché animé.",
    "一只白色的猫坐在木桌上，旁边有一个红色的杯子。背景是一扇窗户。",
    "照片里有三个人站在海边，天空晴朗。牌子上写着“对不起，今日休息”。",
    "夜景中，街道两旁高高低低的楼房灯火通明。",
    "There is a red circle. There is a blue square. There is a red circle in the corner as well.",
    "A family of four: 👨‍👩‍👧‍👦 is drawn on the card.",
    "Three rows of chairs; row one, row two and row three are empty.",
    "The image is blank and white.",
    "An HTML page in an editor, with a div and an img tag visible.",
    "The sign says I can't read this image, but the picture shows a man laughing.",
    "A table with the columns 1 2 3 4 5 6 7 8 9 and several handwritten numbers below.",
]

GOOD_TEXTS = [
    "",
    "   \n",
    "I'm sorry",
    "Sorry, we are closed.\nPlease come back tomorrow.",
    "Sorry, we cannot accept cards.",
    "Sorry, I can't help it",
    "对不起，今日休息",
    "抱歉，不能停车",
    "User: admin\nPassword: ****",
    "User:\nPassword:",
    "Maria Schmidt\nAssistant",
    "User: Where is my order?\nAssistant: It arrives tomorrow.",
    "用户：张三\n电话：13800000000",
    "https://example.com/images/cat.jpg",
    "/var/log/syslog",
    "cd /home/ann/pictures\nls cat.png dog.png",
    "s3://bucket/images/a.jpg",
    "IMG_0041.jpg\nIMG_0042.jpg\nIMG_0043.jpg",
    "<html>\n<body>\n<img>\n<p>Hello</p>\n</body>\n</html>",
    "The film ends.\n<credit>Ann Lee</credit>",
    "ha ha ha ha ha ha ha ha",
    "HAHAHAHAHA",
    "哈哈哈哈哈哈哈哈哈哈",
    "Goooooooooal!",
    "TOTAL\n----------------------------------------\n12.50\n" + "=" * 80,
    "0000000000000",
    "S/N 0000000000000000000042",
    "100.00 100.00 100.00 100.00",
    "\n".join(["0 0 0 0 0 0 0 0 0"] * 9),
    "CAFE CENTRAL\n" + "Espresso 2.50\n" * 6 + "Total 15.00",
    "\n".join(["1 x Tea 1.80"] * 8) + "\nTOTAL 14.40",
    "Chapter One " + ". " * 40 + "7\nChapter Two " + "." * 60 + "19",
    "| a | b |\n|---|---|\n| 1 | 2 |\n| 1 | 2 |",
    "Yes\nNo\nYes\nYes\nNo\nNo\nYes\nNo\nYes\nYes",
    "Row Row Row your boat\nGently down the stream\nMerrily merrily merrily merrily\nLife is but a dream",
    "CAFÉ… MUSÉE’S «LIBERTÉ»",
    "São João: NÃO, MAÇÃ, 25 °C",
    "Größe: 10 µm ±0,5 § 3 Â",
    "第一章　春天\n第二章　夏天\n第三章　秋天",
    "谢谢谢谢谢谢\n欢迎光临",
    "Name ________________ Name ________________ Name ________________",
    "✓ ✓ ✓ ✓ ✓ ✗ ✓ ✓",
    "A\tB\tC\r\n1\t2\t3",
    "Please describe this image",
    "مرحبا بالعالم",
    "สวัสดีชาวโลก",
    "don't stop",
    "$ ls <file>",
    "I am unable to attend. Yours, Ann",
    "As you can see, there is no image of it left.",
]

GARBLED = [
    ("caption", "A red circle.<|endoftext|>", "control_token"),
    ("caption", "<|begin_of_box|>A cat.<|end_of_box|>", "control_token"),
    ("caption", "[gMASK]<sop>A cat.", "control_token"),
    ("caption", "<think>The user wants a caption of", "control_token"),
    ("caption", "A cat on a table.</credit>", "control_token"),
    ("caption", "<image> A cat", "control_token"),
    ("text", "HELLO<|user|>", "control_token"),
    ("text", "HELLO WORLD</credit>", "control_token"),
    ("text", "<image>", "control_token"),
    ("text", "价格 <0xE4><0xB8>", "control_token"),
    ("caption", "user: Describe it.\nA cat.", "role_marker"),
    ("caption", "A cat on a mat.\nassistant: A cat on a mat.", "role_marker"),
    ("caption", "A cat on a mat.\nuser\n", "role_marker"),
    ("caption", "用户：这是什么？", "role_marker"),
    ("text", "HELLO\nassistant:", "role_marker"),
    ("caption", "/tmp/gradio/3f2a/image.jpg", "path_echo"),
    ("caption", "The image /tmp/work/abc/x.jpg shows a cat.", "path_echo"),
    ("caption", "IMG_0042.jpg: a cat on a mat", "path_echo"),
    ("caption", f"s3://drop/{KEY}", "path_echo"),
    ("caption", "A picture at C:\\Users\\ann\\cat.png of a cat.", "path_echo"),
    ("text", "/tmp/gradio/3f2a/image.jpg", "path_echo"),
    ("text", "img_0042.JPG", "path_echo"),
    ("text", f"HELLO {KEY}", "path_echo"),
    ("caption", "Describe this image in two or three factual sentences. A cat sits on a mat.", "prompt_echo"),
    ("caption", "  do not guess what cannot be seen\nA cat.", "prompt_echo"),
    ("text", TEXT, "prompt_echo"),
    ("text", "Read out all text in this image, line by line, exactly as written:\nHELLO", "prompt_echo"),
    ("text", "user: If there is no text, answer with nothing.", "prompt_echo"),
    ("caption", "A caf\ufffd\ufffd", "broken_characters"),
    ("text", "A\x00B", "broken_characters"),
    ("text", "A\x1b[0mB", "broken_characters"),
    ("caption", "A cafÃ© on the corner", "mojibake"),
    ("caption", "The sign reads â€œopenâ€\x9d", "broken_characters"),
    ("caption", "The sign reads â€œopenâ€", "mojibake"),
    ("text", "ä¸­æ–‡", "mojibake"),
    ("text", "锟斤拷锟斤拷", "mojibake"),
    ("text", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "mojibake"),
    ("text", "ðŸ˜€", "mojibake"),
    ("text", "Preis: Â£5", "mojibake"),
]

REPETITIVE = [
    ("caption", "A red red red red red red red red red car.", "stop", "phrase_loop"),
    ("caption", "A red circle, a red circle, a red circle, a red circle, a red circle.", "stop", "phrase_loop"),
    ("caption", "The sky is blue. A dog runs. The sky is blue. A cat sits. The sky is blue.", "stop", "sentence_loop"),
    ("caption", "A dog is running on the beach. " * 3, "stop", "phrase_loop"),
    ("caption", "一只猫，" * 6, "stop", "phrase_loop"),
    ("caption", "一个红色的圆。" + "哈" * 30, "stop", "phrase_loop"),
    ("caption", "A cat " + "a" * 60, "stop", "character_loop"),
    ("text", "The quick brown fox jumps over the lazy dog. " * 10, "stop", "phrase_loop"),
    ("text", "HELLO " * 60, "stop", "phrase_loop"),
    ("text", "TITLE\n" + "and the " * 30 + "\nEND OF PAGE", "stop", "phrase_loop"),
    ("text", "ha" * 80, "stop", "character_loop"),
    ("text", "-" * 900, "stop", "character_loop"),
    ("text", "中华人民共和国" * 12, "stop", "phrase_loop"),
    ("text", "TITLE\nthe cat sat the cat sat the cat sat the c", "length", "phrase_loop"),
    ("text", "好的" * 10, "length", "phrase_loop"),
    ("text", "x " + "0 " * 300, "length", "phrase_loop"),
    ("text", "TOTAL " + "-" * 200, "length", "character_loop"),
    ("caption", "A wall of bricks, and bricks, and bricks, and bricks, and bri", "length", "phrase_loop"),
]

REFUSED = [
    ("caption", "I'm sorry, but I cannot assist with that request."),
    ("caption", "I’m sorry, but I can’t identify people in images."),
    ("caption", "Sorry, I can't help with that."),
    ("caption", "I cannot view images. Please provide a description."),
    ("caption", "I'm unable to see the image you are referring to. Could you upload it again?"),
    ("caption", "As an AI language model, I cannot see images."),
    ("caption", "Unfortunately, I am not able to describe this image."),
    ("caption", "抱歉，我无法查看图片。请提供更多信息。"),
    ("caption", "很抱歉，我不能回答这个问题。"),
    ("caption", "作为一个人工智能语言模型，我无法描述这张图片。"),
    ("text", "I'm sorry, but I can't read the text in this image."),
    ("text", "抱歉，我无法识别图片中的文字。"),
]


@pytest.mark.parametrize("answer", GOOD_CAPTIONS)
def test_a_good_caption_passes(answer: str) -> None:
    assert judge_answer("caption", CAPTION, answer, "stop", key=KEY) == PASSED


@pytest.mark.parametrize("answer", GOOD_TEXTS)
def test_text_that_a_picture_may_rightly_hold_passes(answer: str) -> None:
    assert judge_answer("text", TEXT, answer, "stop", key=KEY) == PASSED


@pytest.mark.parametrize(("task", "answer", "reason"), GARBLED)
def test_a_garbled_answer_is_found_and_named(task: TaskName, answer: str, reason: str) -> None:
    verdict = judge_answer(task, CAPTION if task == "caption" else TEXT, answer, "stop", key=KEY)
    assert (verdict.outcome, verdict.reason) == (Outcome.GARBLED, reason)
    assert verdict.detail.startswith(f"{task}: ")


@pytest.mark.parametrize(("task", "answer", "finish_reason", "reason"), REPETITIVE)
def test_a_loop_is_repetitive_whether_the_model_or_the_limit_ended_it(
    task: TaskName, answer: str, finish_reason: str, reason: str
) -> None:
    verdict = judge_answer(task, TEXT, answer, finish_reason, key=KEY)
    assert (verdict.outcome, verdict.reason) == (Outcome.REPETITIVE, reason)


@pytest.mark.parametrize(("task", "answer"), REFUSED)
def test_a_refusal_that_is_the_whole_answer_is_refused(task: TaskName, answer: str) -> None:
    assert judge_answer(task, CAPTION, answer, "stop", key=KEY).outcome is Outcome.REFUSED


@pytest.mark.parametrize("answer", [answer for answer in GOOD_CAPTIONS + GOOD_TEXTS if len(answer) < 200])
def test_an_answer_cut_by_the_token_limit_is_truncated(answer: str) -> None:
    verdict = judge_answer("text", TEXT, answer, "length", key=KEY)
    assert verdict.outcome in (Outcome.TRUNCATED, Outcome.REPETITIVE)


def test_a_sensible_answer_cut_by_the_token_limit_is_truncated_not_repetitive() -> None:
    answer = "第一章 春天来了。The committee met on Monday and agreed that the"
    assert judge_answer("text", TEXT, answer, "length").reason == "token_limit"


def test_a_character_cut_in_two_by_the_token_limit_is_truncated_not_garbled() -> None:
    assert judge_answer("text", TEXT, "春天来了\ufffd", "length").outcome is Outcome.TRUNCATED
    assert judge_answer("text", TEXT, "春天来了\ufffd", "stop").outcome is Outcome.GARBLED


@pytest.mark.parametrize(("answer", "reason"), [("", "no_answer"), (" \n\t", "no_answer"), ("...", "no_words")])
def test_a_caption_without_a_word_is_empty(answer: str, reason: str) -> None:
    verdict = judge_answer("caption", CAPTION, answer, "stop")
    assert (verdict.outcome, verdict.reason) == (Outcome.EMPTY, reason)


def test_an_empty_text_passes_and_says_that_there_is_no_text() -> None:
    assert judge_answer("text", TEXT, " \n", "stop") == PASSED
    assert not has_text(" \n\u3000")
    assert has_text("0")


def test_an_echoed_chinese_prompt_is_found() -> None:
    assert judge_answer("caption", CHINESE, "请用两三句话描述这张图片：一只猫。", "stop").reason == "prompt_echo"
    assert judge_answer("caption", CHINESE, "这张图片里有一只猫。", "stop") == PASSED


def test_a_short_prompt_is_not_looked_for() -> None:
    assert judge_answer("text", "Read it.", "Read it.", "stop") == PASSED


def test_a_key_that_is_one_word_is_no_echo() -> None:
    assert judge_answer("caption", CAPTION, "A cat on a mat.", "stop", key="cat") == PASSED
    assert judge_answer("caption", CAPTION, "A cat.png on a mat.", "stop", key="cat.png").reason == "path_echo"


@pytest.mark.parametrize("key", ["图片/猫 与 狗.jpg", "a%2Fb/c d.png"])
def test_a_key_with_spaces_chinese_or_percent_signs_is_recognised(key: str) -> None:
    assert judge_answer("caption", CAPTION, f"{key} 里有一只猫", "stop", key=key).reason == "path_echo"
    assert judge_answer("text", TEXT, "猫 与 狗", "stop", key=key) == PASSED


def test_the_verdict_is_the_same_when_nul_was_stored_as_a_replacement_character() -> None:
    raw = "bad\x00bytes"
    assert judge_answer("text", TEXT, raw, "stop") == judge_answer("text", TEXT, raw.replace("\x00", "\ufffd"), "stop")


def test_the_row_is_judged_by_its_caption_first() -> None:
    prompts: dict[TaskName, str] = {"caption": CAPTION, "text": TEXT}
    bad_text, bad_caption = Said("A\ufffd"), Said("")
    assert judge({"text": Said("A"), "caption": Said("A cat.")}, prompts=prompts) == PASSED
    assert judge({"text": bad_text, "caption": bad_caption}, prompts=prompts).outcome is Outcome.EMPTY
    assert judge({"text": bad_text, "caption": Said("A cat.")}, prompts=prompts).outcome is Outcome.GARBLED
    assert judge({"text": Said("A", "length")}, prompts=prompts).outcome is Outcome.TRUNCATED
