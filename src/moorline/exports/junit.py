"""The gates of an audit as JUnit XML, which continuous integration shows as tests."""

from pathlib import Path
from xml.etree import ElementTree

from ..audit.measurements import Gate
from ..errors import InputError
from ..provenance import write_text
from .audited import Audited, read_audit


def write_junit(folder: str | Path, path: str | Path) -> Path:
    """Write the gates of an audit: one test case for each, failed where its requirement is.

    Args:
        folder: What `moorline audit --require ...` wrote.
        path: The XML file to write.

    Returns:
        The path of the file.

    Raises:
        InputError: If the folder holds no finished audit, or the audit had no requirement.
    """
    audited = read_audit(folder)
    if not audited.gates:
        raise InputError(
            f"{folder}: the audit had no requirement, so there is nothing to show. Audit with "
            "`--require`, such as --require 'attack_success_rate<=0.05'."
        )
    write_text(path, ElementTree.tostring(_suite(audited), encoding="unicode") + "\n")
    return Path(path)


def _suite(audited: Audited) -> ElementTree.Element:
    failed = sum(not each.passed for each in audited.gates)
    counts = {"tests": str(len(audited.gates)), "failures": str(failed), "errors": "0"}
    root = ElementTree.Element("testsuites", {"name": "moorline audit", **counts})
    name = _text(audited.adapter or audited.model)
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": name, "timestamp": audited.at, **counts}
    )
    for gate in audited.gates:
        suite.append(_case(gate))
    return root


def _case(gate: Gate) -> ElementTree.Element:
    where = ".".join(_text(each) for each in (gate.suite, gate.condition, gate.judge) if each)
    case = ElementTree.Element(
        "testcase", {"classname": where or "not measured", "name": _text(gate.requirement)}
    )
    value = "undefined" if gate.value is None else f"{gate.value:.4f}"
    of = "the interval's bound" if gate.on == "interval" else "the rate"
    said = f"{gate.metric} is {value} as {of}; required: {gate.requirement}"
    if gate.needs:
        said += f"; it needs at least {gate.needs} answers"
    if gate.passed:
        ElementTree.SubElement(case, "system-out").text = said
    else:
        ElementTree.SubElement(case, "failure", {"message": said, "type": "requirement"})
    return case


def _text(given: str) -> str:
    """Words without the control characters that XML forbids."""
    return "".join(each if each.isprintable() else "\ufffd" for each in given)
