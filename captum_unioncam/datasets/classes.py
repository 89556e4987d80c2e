"""Maps the classes of a data set to the outputs of a model."""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from captum_unioncam.system.errors import WrongArgument, one_line

T = TypeVar("T")

CLASS_FILE_FORM = (
    "class_file=FILE must hold one line for each output of the model, in order, whose first word is the class's name "
    "in the data set, as ImageNet's LOC_synset_mapping.txt has, or be .json with the output of each name"
)


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model, as ``open_data_set`` takes them."""

    names: Sequence[str] | None
    count: int
    class_file: Path | None

    def of(self, found: Collection[str], ordered: Sequence[str]) -> dict[str, int]:
        """The output of each class that was found; ``ordered`` are all possible classes in order."""
        if self.class_file is not None:
            return self._of_class_file(found, self.class_file)
        known = _positions([_plain(name) for name in self.names or ()])
        matching = {name: known[_plain(name)] for name in found if _plain(name) in known}
        if len(matching) == len(found):
            return matching
        if not matching and (places := self._in_order(ordered)):
            return {name: places[name] for name in found}
        unknown = ", ".join(sorted(set(found) - set(matching))[:3])
        raise WrongArgument(
            f"the data set's classes {unknown} (of {len(ordered)}) are not names of the model's {self.count} outputs; "
            f"{CLASS_FILE_FORM}."
        )

    def _in_order(self, ordered: Sequence[str]) -> dict[str, int] | None:
        """The output of each class by its number, or else by its place; None if neither is unambiguous."""
        numbers = {name: int(name) for name in ordered if re.fullmatch("[0-9]{1,9}", name)}
        if numbers and len(numbers) == len(ordered):
            if len(set(numbers.values())) < len(numbers):
                return None
            first = 1 if set(numbers.values()) == set(range(1, self.count + 1)) else 0
            if max(numbers.values()) - first < self.count:
                return {name: number - first for name, number in numbers.items()}
        if len(ordered) != self.count:
            return None
        # As text, class_2 sorts after class_10.
        misleads = list(ordered) == sorted(ordered) != sorted(ordered, key=_by_numbers)
        return None if misleads else {name: output for output, name in enumerate(ordered)}

    def _of_class_file(self, found: Collection[str], path: Path) -> dict[str, int]:
        try:
            text = path.read_text(encoding="utf-8-sig")
            outputs = self._of_json(json.loads(text)) if path.suffix.lower() == ".json" else self._of_lines(text)
        except (OSError, ValueError, RecursionError) as error:
            problem = getattr(error, "strerror", None) or one_line(error)
            raise WrongArgument(f"class_file={str(path)!r}: {problem}; {CLASS_FILE_FORM}.") from error
        if missing := sorted(set(found) - set(outputs)):
            raise WrongArgument(
                f"class_file={str(path)!r}: does not name {', '.join(missing[:3])} ({len(missing)} of the data set's "
                f"{len(found)} classes), or not only once; {CLASS_FILE_FORM}."
            )
        return {name: outputs[name] for name in found}

    def _of_lines(self, text: str) -> dict[str, int]:
        lines = text.rstrip().splitlines()
        if len(lines) != self.count:
            # Such as a heading, which would shift every class by one.
            raise ValueError(f"has {len(lines)} lines, but the model {self.count} outputs")
        return _positions([" ".join(line.split()[:1]) for line in lines])

    def _of_json(self, content: Any) -> dict[str, int]:
        if not isinstance(content, dict):
            raise ValueError("holds no object of outputs by name")
        for name, output in content.items():
            if type(output) is not int or not 0 <= output < self.count:
                raise ValueError(f"gives {name} the output {output!r}, which is not from 0 to {self.count - 1}")
        return content


def names_of_outputs(class_file: Path, count: int) -> tuple[str, ...]:
    """The name of each output in a file of classes that ``Outputs`` has taken.

    Of a line, what follows the first word, as in "n01440764 tench", or that word where it stands alone.
    """
    text = class_file.read_text(encoding="utf-8-sig")
    if class_file.suffix.lower() != ".json":
        parts = [line.split(maxsplit=1) for line in text.rstrip().splitlines()]
        return tuple(words[-1].strip() if words else f"class {index}" for index, words in enumerate(parts))
    # Several classes may be one output.
    names = by_output({name: [name] for name in json.loads(text)}, json.loads(text))
    return tuple(", ".join(names.get(index, [f"class {index}"])) for index in range(count))


def listed_classes(*folders: Path) -> list[str] | None:
    """The classes that ``data.yaml`` or ``classes.txt`` in the first of the folders names, in order; None without one.

    Raises:
        WrongArgument: The file cannot be read, or names no classes from number 0 on.
    """
    for path in (folder / name for folder in folders for name in ("data.yaml", "classes.txt")):
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8-sig")
            names = _yaml_names(text) if path.suffix == ".yaml" else text.strip().splitlines()
        except (OSError, ValueError) as error:
            raise WrongArgument(f"{path}: {getattr(error, 'strerror', None) or one_line(error)}.") from error
        return [name.strip() for name in names]
    return None


def _yaml_names(text: str) -> list[str]:
    """The list or table ``names`` of YOLO's data.yaml, in any of the ways that YOLO's tools write it."""
    block = re.search(r"^names[ ]*:(.*?)(?=^[^\s#\]}-]|\Z)", text, re.MULTILINE | re.DOTALL)
    quoted = r"""'(?:[^'\n]|'')*'|"[^"\n]*\""""
    # Without comments, but not without a # in quotes.
    body = re.sub(rf"({quoted})|(?:^|\s)#.*", lambda found: found[1] or "", block[1]).strip() if block else ""
    if body.startswith(("[", "{")):
        entries = re.findall(rf"\s*(?:(\d+)\s*:)?\s*({quoted}|[^,\[\]{{}}\n]+)", body.strip("[]{}"))
    else:
        entries = re.findall(r"^\s*(?:-|(\d+)\s*:)\s+(\S.*)$", body, re.MULTILINE)
    names = [name.strip() for _, name in entries if name.strip()]
    numbers = [int(number) for number, _ in entries if number]
    if not names or (numbers and numbers != list(range(len(names)))):
        raise ValueError("names no classes from number 0 on under names; give classes.txt with a line for each")
    return [name[1:-1].replace("''", "'") if name[0] in "'\"" else name for name in names]


def by_output(objects: Mapping[str, list[T]], outputs: Mapping[str, int]) -> dict[int, list[T]]:
    """The objects of each output, ascending; a file of classes may give several classes the same one."""
    merged: dict[int, list[T]] = {}
    for class_name in sorted(objects, key=lambda name: outputs[name]):
        merged.setdefault(outputs[class_name], []).extend(objects[class_name])
    return merged


def _positions(names: Sequence[str]) -> dict[str, int]:
    """The place of each unique name. ImageNet has two classes called "crane"."""
    times = Counter(names)
    return {name: position for position, name in enumerate(names) if times[name] == 1}


def _by_numbers(name: str) -> list[tuple[str, int]]:
    """A sort key that compares the numbers in names as numbers."""
    return [(text, int(number or 0)) for text, number in re.findall("([^0-9]*)([0-9]*)", name)]


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ")
