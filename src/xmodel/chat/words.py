"""What the chat says, in English and in Chinese."""

from __future__ import annotations

import os
from collections.abc import Mapping

LANGUAGES = ("en", "zh")

WORDS: dict[str, tuple[str, str]] = {
    "title": ("{name}: {parameters} parameters, {dtype} on {device}, a context of {context} tokens",
              "{name}：{parameters} 参数，{device} 上以 {dtype} 运行，上下文 {context} 词元"),
    "base": ("A base model: it continues text. Turns are framed as {en}, Chinese ones as {zh}.",
             "这是基座模型，只会续写文本。每轮对话写成 {zh}，英文写成 {en}。"),
    "raw": ("No frame (--raw): the model continues the whole conversation as one text.",
            "无格式（--raw）：模型把整个对话当作一篇文本续写。"),
    "chat": ("Turns are framed by the chat template that comes with the model.", "对话格式由模型自带的聊天模板决定。"),
    "opening": ("opening {where} ...", "正在打开 {where} ……"),
    "hint": ("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.",
             "/help 列出命令；Ctrl-C 停止回答，Ctrl-D 退出。"),
    "again": ("Ctrl-C once more, or Ctrl-D, leaves.", "再按一次 Ctrl-C，或按 Ctrl-D 退出。"),
    "stopped": ("stopped", "已停止"),
    "length": ("cut off after {count} tokens; /max N allows more", "已到 {count} 词元的上限；/max N 可放宽"),
    "full": ("cut off: the context of {context} tokens is full", "已截断：{context} 词元的上下文已满"),
    "nothing": ("The model says nothing to that; the turn is taken back.", "模型没有回答；这一轮已撤回。"),
    "taken_back": ("Stopped before a word came; the turn is taken back.", "还没有内容就停止了；这一轮已撤回。"),
    "failed": ("The engine failed at this answer; the cause stands above.", "引擎在回答时出错，原因见上。"),
    "dropped": ("The context of {context} tokens is full: the model no longer sees the oldest {count} of {all} turns.",
                "{context} 词元的上下文已满：模型不再看到最早的 {count} 轮（共 {all} 轮）。"),
    "too_long": ("This turn takes {count} tokens and the context holds {context}, the answer included: shorten it.",
                 "这一轮有 {count} 词元，而上下文（连同回答）只有 {context} 词元：请缩短。"),
    "unknown": ("/{name}: no such command{near}; /help lists all (text that begins with / goes between \"\"\")",
                "/{name}：没有这个命令{near}；/help 列出全部（以 / 开头的文本请写在两行 \"\"\" 之间）"),
    "near": (", the nearest: {names}", "，最接近的是 {names}"),
    "number": ("/{name} {value}: a number is needed, such as {example}", "/{name} {value}：需要一个数，例如 {example}"),
    "no_argument": ("/{name} takes nothing behind it.", "/{name} 后面不带内容。"),
    "file_needed": ("/{name} needs the name of a file.", "/{name} 需要文件名。"),
    "set": ("{name} is {value}", "{name} 为 {value}"),
    "none": ("none", "无"),
    "off": ("off", "关"),
    "greedy": ("greedy", "贪心"),
    "random": ("new each time", "每次不同"),
    "forgotten": ("The conversation is forgotten.", "对话已清空。"),
    "undone": ("The last turn is taken back.", "上一轮已撤回。"),
    "no_turn": ("There is no turn yet.", "还没有对话。"),
    "no_tokens": ("There is no answer of the model yet.", "模型还没有回答。"),
    "same": ("At temperature 0 the same answer comes again; /temperature 0.8 varies it.",
             "温度为 0 时回答总是相同；/temperature 0.8 可产生变化。"),
    "saved": ("{count} messages saved in {path}", "{count} 条消息已存入 {path}"),
    "loaded": ("{count} messages loaded from {path}", "已从 {path} 读入 {count} 条消息"),
    "exists": ("{path} exists already and is not from this conversation; name another file.",
               "{path} 已存在，且不是本次对话的文件；请换一个文件名。"),
    "no_history": ("What you type is not kept for the next time: {reason}", "输入历史无法保存：{reason}"),
    "token": ("token", "词元"),
    "probability": ("probability", "概率"),
    "rivals": ("most likely", "最可能的词元"),
    "speed": ("{count} tokens in {seconds} s, {rate} tokens/s", "{count} 词元，{seconds} 秒，{rate} 词元/秒"),
    "setting": ("setting", "设置"),
    "value": ("value", "值"),
    "language": ("language", "界面语言"),
    "turns": ("turns", "轮数"),
    "context": ("context", "上下文"),
    "context_used": ("{used} of {context} tokens", "{used} / {context} 词元"),
    "model": ("model", "模型"),
    "command": ("command", "命令"),
    "meaning": ("what it does", "作用"),
    "multi_line": ("A line that ends in \\ goes on in the next one; between \"\"\" and \"\"\" any lines may stand.",
                   "以 \\ 结尾的行续到下一行。\"\"\" 与 \"\"\" 之间可以写任意多行。"),
    "/help": ("this list", "显示本列表"),
    "/reset": ("forget the conversation; settings stay", "清空对话，保留设置"),
    "/retry": ("answer the last turn anew", "重新回答上一轮"),
    "/undo": ("take the last turn and its answer back", "撤回上一轮及其回答"),
    "/system": ("what the model is told before all turns; none: nothing", "对话前给模型的说明；none 表示没有"),
    "/temperature": ("how freely words are chosen; 0: always the likeliest", "采样温度；0 表示总取最可能的词元"),
    "/top-p": ("only the likeliest tokens of this probability together; 1: all",
               "只从概率之和达到此值的最可能词元中取；1 为全部"),
    "/top-k": ("only so many of the likeliest tokens; 0: all", "只从最可能的若干词元中取；0 为全部"),
    "/min-p": ("only tokens of this share of the likeliest's probability; 0: all",
               "只取概率不低于最大概率此倍数的词元；0 为全部"),
    "/repetition": ("above 1: makes repeating less likely", "重复惩罚；大于 1 减少重复"),
    "/max": ("most tokens of an answer", "回答的最多词元数"),
    "/seed": ("makes answers repeatable; none: new each time", "固定后回答可重现；none 表示每次不同"),
    "/settings": ("all settings, and how full the context is", "显示全部设置及上下文用量"),
    "/tokens": ("the last answer token by token, with probabilities", "逐词元显示上一个回答及概率"),
    "/save": ("write the conversation, one JSON message a line", "保存对话，每行一条 JSON 消息"),
    "/load": ("go on with a conversation from such a file", "从这样的文件读入对话并继续"),
    "/quit": ("leave (Ctrl-D too)", "退出（也可按 Ctrl-D）"),
}  # fmt: skip


class Words:
    """The interface in one language: `say("saved", count=3, path="a.jsonl")`."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._column = LANGUAGES.index(language)

    def __call__(self, key: str, **values: object) -> str:
        return WORDS[key][self._column].format(**values)


def locale_language(environment: Mapping[str, str] = os.environ) -> str:
    """`zh` where the locale of messages is Chinese (POSIX: LC_ALL before LC_MESSAGES before LANG), else `en`."""
    named = next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := environment.get(name))), "")
    return "zh" if named.lower().startswith("zh") else "en"
