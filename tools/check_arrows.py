#!/usr/bin/env python3
"""Checks the rules of the source tree that a script can check.

Arrows: which folder may include which. House rules: length of files and lines, white space, header
guards, words that mark unfinished work, and what library headers may not contain.

usage: tools/check_arrows.py [ROOT]

Prints one line for each violation, `path:line: message [rule]`, and exits 1 if there is any.
"""

import os
import re
import sys

# What each folder may include. Folders that do not exist yet are listed too, so that they start out
# under the rule.
ARROWS = {
    "io": {"io"},
    "tiers": {"tiers", "io"},
    "index": {"index"},
    "runtime": {"runtime", "index", "tiers", "io"},
    "tools": {"tools", "runtime", "index", "tiers", "io"},
    "bench": {"bench", "runtime", "index", "tiers", "io"},
    "examples": {"examples", "runtime", "index", "tiers", "io"},
    "tests": {"tests", "examples", "bench", "tools", "runtime", "index", "tiers", "io"},
}
LIBRARY_FOLDERS = {"io", "tiers", "index", "runtime"}
SHORT_FILE_FOLDERS = LIBRARY_FOLDERS | {"tools"}
CODE_EXTENSIONS = (".h", ".cc", ".cu", ".cuh")
HEADER_EXTENSIONS = (".h", ".cuh")
OTHER_TEXT = re.compile(r"(\.(py|cmake|cmake\.in|md)|CMakeLists\.txt)$")

MAX_FILE_LINES = 450
MAX_LINE_COLUMNS = 100

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
CONDITIONAL = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif|else)\b")
# In pieces, so that this file does not contain the words that it looks for.
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)) + r")\b")


class Checker:
    """Collects the violations in the tree under `root`."""

    def __init__(self, root):
        self.root = root
        self.violations = []

    def report(self, path, line, rule, message):
        self.violations.append(f"{path}:{line}: {message} [{rule}]")

    def check_tree(self):
        for folder in sorted(ARROWS):
            for directory, subfolders, names in os.walk(os.path.join(self.root, folder)):
                subfolders.sort()
                for name in sorted(names):
                    path = os.path.relpath(os.path.join(directory, name), self.root)
                    if name.endswith(CODE_EXTENSIONS):
                        self.check_code(path, folder)
                    elif OTHER_TEXT.search(name):
                        self.read_lines(path)

    def read_lines(self, path):
        """Returns the lines of a text file after the checks that hold for any text."""
        with open(os.path.join(self.root, path), "rb") as file:
            content = file.read()
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            self.report(path, 1, "encoding", "not UTF-8")
            text = content.decode("utf-8", errors="replace")
        lines = text.split("\n")
        if lines[-1] == "":
            lines.pop()
        for number, line in enumerate(lines, 1):
            if "\t" in line:
                self.report(path, number, "tab", "tab character")
            # Markdown means a line break by two spaces at the end.
            if line != line.rstrip() and not path.endswith(".md"):
                self.report(path, number, "trailing-space", "white space at the end of the line")
            if UNFINISHED.search(line):
                self.report(path, number, "unfinished", "a mark of unfinished work")
        return lines

    def check_code(self, path, folder):
        lines = self.read_lines(path)
        if folder in SHORT_FILE_FOLDERS and len(lines) > MAX_FILE_LINES:
            self.report(path, len(lines), "file-length",
                        f"{len(lines)} lines, more than {MAX_FILE_LINES}: one noun a file")
        for number, line in enumerate(lines, 1):
            if len(line) > MAX_LINE_COLUMNS:
                self.report(path, number, "line-length",
                            f"{len(line)} columns, more than {MAX_LINE_COLUMNS}")
            match = INCLUDE.match(line)
            if match:
                self.check_include(path, number, folder, match.group(1), match.group(2))
        if path.endswith(HEADER_EXTENSIONS):
            self.check_header(path, folder, lines)

    def check_include(self, path, number, folder, quote, target):
        first = target.split("/")[0]
        if first in (".", "..") or (quote == '"' and os.path.isfile(
                os.path.join(self.root, os.path.dirname(path), target))):
            self.report(path, number, "include-path",
                        f'"{target}" is relative; write the path from the root of the repository')
        elif "/" in target and first in ARROWS and first not in ARROWS[folder]:
            self.report(path, number, "arrow", f"{folder}/ may not include {first}/")
        if target == "iostream" and folder in LIBRARY_FOLDERS:
            self.report(path, number, "iostream", "libraries do not include <iostream>")

    def check_header(self, path, folder, lines):
        guard = "TERRACE_" + re.sub(r"[^A-Za-z0-9]", "_", path).upper() + "_"
        directives = [(number, line.split()) for number, line in enumerate(lines, 1)
                      if line.lstrip().startswith("#")]
        opening = [words for _, words in directives[:2]]
        if opening != [["#ifndef", guard], ["#define", guard]] or directives[-1][1][0] != "#endif":
            self.report(path, directives[0][0] if directives else 1, "guard",
                        f"the header guard is not {guard}")
        if folder in LIBRARY_FOLDERS:
            is_guard = [words[0] for words in opening] == ["#ifndef", "#define"]
            for number, _ in directives[2 if is_guard else 0:]:
                if CONDITIONAL.match(lines[number - 1]):
                    self.report(path, number, "conditional-header",
                                "conditional compilation in a library header: choose at link time")


def main(arguments):
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        print(__doc__)
        return 0 if arguments in (["--help"], ["-h"]) else 2
    root = arguments[0] if arguments else os.path.join(os.path.dirname(__file__), "..")
    if not os.path.isdir(root):
        print(f"check_arrows: {root} is not a folder", file=sys.stderr)
        return 2
    checker = Checker(root)
    checker.check_tree()
    for violation in checker.violations:
        print(violation)
    print(f"check_arrows: {len(checker.violations)} violations")
    return 1 if checker.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
