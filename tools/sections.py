"""Tables in a Markdown file that tools write and people do not."""

import re


def replace_section(text: str, name: str, table: str) -> str:
    """The text with the table between its two marks.

    Raises:
        ValueError: if the marks are not there.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"There is no {begin} ... {end} in the file.")
    return pattern.sub(lambda _: f"{begin}\n{table}\n{end}", text)
