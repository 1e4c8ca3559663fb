"""
Docstrings in Hugging Face's format as Markdown, for the API reference: `Args:` becomes a list, [`~ccpo.Name`] a link.

griffe's own styles read `name (type): text`, and not `name (`type`, *optional*, defaults to `x`):`, which this project
writes. So the reference is told that docstrings are Markdown, and this extension makes them so.
"""

import re
import textwrap

from griffe import Alias, Docstring, Extension, Object

_TITLES = {"Args": "Arguments", "Returns": "Returns", "Raises": "Raises", "Attributes": "Attributes"}
_TITLES |= {"Example": "Example", "Overrides": "Overrides"}
_SECTION = re.compile(rf"^({'|'.join(_TITLES)}):[ ]?\n((?:(?:[ ]{{4}}.*)?\n?)*)", re.MULTILINE)
_ONE = r"\w+(?: \((?:[^()]|\([^()]*\))*\))?(?:, \*optional\*)?"  # name (type)
_ENTRY = re.compile(rf"({_ONE}(?:, {_ONE})*(?:, defaults? to [^:]*)?):(?: (.*)|$)")
_NAME = re.compile(r"\((?:[^()]|\([^()]*\))*\)|\*optional\*|defaults? to .*|(\w+)")
_REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\](?!\()")


class HuggingFaceDocstrings(Extension):
    """griffe's extension: rewrites each docstring when its package is loaded."""

    def on_package(self, *, pkg, **kwargs) -> None:
        self._rewrite(pkg, set())

    def _rewrite(self, owner: Object, seen: set[str]) -> None:
        if owner.path in seen:
            return
        seen.add(owner.path)
        if owner.docstring is not None:
            owner.docstring.value = to_markdown(owner.docstring.value, owner)
        elif owner.is_function and owner.parent.is_class:
            owner.docstring = _inherited(owner)
        for member in owner.members.values():
            if not isinstance(member, Alias):
                self._rewrite(member, seen)


def _inherited(method: Object) -> Docstring | None:
    """What the nearest base class says of a method that says nothing itself."""
    for base in method.parent.mro():
        found = base.members.get(method.name)
        if found is not None and found.docstring is not None:
            return Docstring(to_markdown(found.docstring.value, found), parent=method)
    return None


def to_markdown(text: str, owner: Object) -> str:
    """A docstring of the project as Markdown: sections under bold titles, their entries as lists, names as links."""
    text = _SECTION.sub(lambda found: f"**{_TITLES[found[1]]}**\n\n{_section(found[1], found[2])}\n", text + "\n")
    return _REFERENCE.sub(lambda found: _link(found[1], found[2], owner), text)


def _section(kind: str, body: str) -> str:
    body = textwrap.dedent(body).strip()
    return _entries(body) if kind in ("Args", "Attributes") else body + "\n"


def _entries(body: str) -> str:
    """`name (type): text` as an entry of a list, with what is indented below it; other lines stay as they are."""
    out = []
    for line in body.splitlines():
        head = _ENTRY.match(line)
        if head:
            names = _NAME.sub(lambda found: f"**`{found[1]}`**" if found[1] else found[0], head[1])
            out.append(f"- {names}: {head[2] or ''}".rstrip())
        elif line.startswith(">"):  # Hugging Face's title of a group of arguments
            out += ["", f"*{line[1:].strip()}*", ""]
        else:
            out.append(line)
    return "\n".join(out) + "\n"


def _link(short: str, name: str, owner: Object) -> str:
    """A link to where the reference has the name; plain code if it has it nowhere, as of other projects' names."""
    path = name
    if "." not in name:
        try:
            path = owner.resolve(name)
        except Exception as error:  # griffe's NameResolutionError: a name of another module
            if type(error).__name__ != "NameResolutionError":
                raise
            path = f"ccpo.{name}"
    shown = name.rsplit(".", 1)[-1] if short else name
    return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'
