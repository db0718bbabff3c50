"""The format suffixes that LLaVA-1.5 and the released EMMA put after a benchmark's question, letter by letter."""

SHORT = "Answer the question using a single word or phrase."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
LETTER_CN = "请直接回答选项字母。"
LETTER = "Answer with the option's letter from the given choices directly."


def option_lines(options: tuple[str, ...]) -> str:
    """`A. first option`, newline, `B. second option` ..."""
    return "\n".join(f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options))
