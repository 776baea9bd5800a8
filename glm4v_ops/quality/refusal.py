"""Refusals: the model says that it will not or cannot, and nothing else.

Only a refusal that is the whole answer counts. "I'm sorry" inside an answer is a caption's quotation or a sign's own
text. In the text task the answer must moreover speak of the image or of itself, for a sign may well say
"Sorry, we cannot accept cards".
"""

from __future__ import annotations

import re

#: Characters of the longest refusal: three sentences. A longer answer says something besides.
_LONGEST = 500

_CANNOT = r"(?:can(?:no|['’])t|can not|am unable to|['’]m unable to|am not able to|['’]m not able to|won['’]t|will not)"
_SORRY = (
    r"(?:(?:i['’]?m|i am)\s+(?:so |very |really )?sorry|sorry|i apologi[sz]e|(?:my )?apologies|unfortunately|"
    r"(?:i['’]?m|i am) afraid)"
)
_DO = (
    r"(?:assist|help|provide|describe|view|see|identify|read|extract|transcribe|analy[sz]e|process|answer|comply|"
    r"fulfil+|recogni[sz]e|interpret|access|open|display|generate|create|caption|discuss|determine|make out)"
)
_ABOUT = r"(?:images?|pictures?|photos?|photographs?|texts?|requests?|files?|content|prompt|person|people|individuals?)"
_REFUSAL = re.compile(
    rf"(?:{_SORRY}[,.!]?\s+(?:but\s+|that\s+)?)?(?:as an ai\b[^,.]*?,?\s*)?i\s*{_CANNOT}\s+(?:\w+\s+){{0,3}}?{_DO}\b"
    rf"|{_SORRY}[,.]?\s+(?:but\s+)?(?:there is|there['’]s) no (?:image|picture|photo)"
    rf"|as an? (?:ai|artificial intelligence|language model)\b"
    rf"|i (?:do not|don['’]t) (?:have the (?:ability|capability)|see (?:an?|any) (?:image|picture))"
    rf"|(?:很|非常|十分)?(?:抱歉|对不起|不好意思)[，,。！!]?\s*(?:但)?我?(?:目前|暂时)?(?:无法|不能|没办法|不可以|没有办法|看不到)"
    rf"|我(?:目前|暂时)?(?:无法|不能|没办法|没有办法)(?:直接)?(?:查看|看到|描述|识别|提供|处理|回答|分析|读取|访问|协助|帮助)"
    rf"|作为(?:一个|一名)?(?:ai|人工智能|语言模型)",
    re.I,
)
_ABOUT_ITSELF = re.compile(
    rf"\b{_DO}\b.*\b{_ABOUT}\b|\b(?:assist|help)(?: you)? with (?:that|this)\b|as an? (?:ai|artificial|language)\b"
    r"|no (?:image|picture|photo)|any (?:image|picture)|图|照片|文字|内容|请求|人工智能|语言模型|(?<![a-z])ai(?![a-z])",
    re.I,
)
#: What a refusal is followed by.
_FOLLOW_UP = re.compile(
    rf"{_SORRY}[.!]?$|(?:please|could you|can you|would you|if you|let me know|how (?:can|may) i|feel free|"
    r"i['’]d be happy|is there anything|perhaps you|you (?:can|could|may) )|"
    r"请|如果您?|您可以|你可以|很抱歉|抱歉|对不起|希望",
    re.I,
)
#: A sentence that goes on to say what the image shows is an answer after all.
_SHOWS = re.compile(
    r"\b(?:image|picture|photo|photograph|it|there|scene)\s+(?:does\s+)?(?:shows?|depicts?|contains?|features?|appears?|"
    r"is of|are)\b|(?:图片|图中|画面|照片)(?:显示|展示|中有|里有|是)",
    re.I,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


def is_refusal(answer: str, *, is_caption: bool) -> bool:
    """Whether `answer` is a refusal and nothing else."""
    bare = answer.strip().strip("\"'“”")
    if not bare or len(bare) > _LONGEST:
        return False
    sentences = [sentence.strip() for sentence in _SENTENCE_END.split(bare) if sentence.strip()]
    if any(_SHOWS.search(sentence) for sentence in sentences):
        return False
    refusals = [sentence for sentence in sentences if _REFUSAL.match(sentence)]
    others = [sentence for sentence in sentences if not _REFUSAL.match(sentence)]
    if not refusals or not all(_FOLLOW_UP.match(sentence) for sentence in others):
        return False
    return is_caption or any(_ABOUT_ITSELF.search(sentence) for sentence in refusals)
