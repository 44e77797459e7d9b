#!/usr/bin/env python3
"""Shows on made-up trees that every rule of tools/check_arrows.py fires, and only where it should."""

import contextlib
import io
import os
import re
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True  # the source tree stays as it is
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools"))
import check_arrows  # pylint: disable=wrong-import-position


def header(path, body=""):
    """A header with the right guard."""
    guard = "TERRACE_" + re.sub(r"[^A-Za-z0-9]", "_", path).upper() + "_"
    return f"#ifndef {guard}\n#define {guard}\n\n{body}\n#endif  // {guard}\n"


class CheckArrowsTest(unittest.TestCase):

    def check(self, files):
        """Returns the exit status and the (path, line, rule) of each violation in a tree."""
        with tempfile.TemporaryDirectory() as root:
            for path, content in files.items():
                full = os.path.join(root, path)
                os.makedirs(os.path.dirname(full), exist_ok=True)
                with open(full, "wb") as file:
                    file.write(content if isinstance(content, bytes) else content.encode())
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                status = check_arrows.main([root])
        found = re.findall(r"^(\S+?):(\d+): .* \[([a-z-]+)\]$", output.getvalue(), re.MULTILINE)
        return status, [(path, int(line), rule) for path, line, rule in found]

    def assert_clean(self, files):
        self.assertEqual(self.check(files), (0, []))

    def assert_fires(self, rule, line, path, content):
        self.assertEqual(self.check({path: content}), (1, [(path, line, rule)]))

    def test_a_wrong_call_is_refused(self):
        for arguments in (["--no-such-option"], ["a", "b"], ["/no/such/folder"]):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(
                    io.StringIO()):
                self.assertEqual(check_arrows.main(arguments), 2)

    def test_an_empty_tree_is_clean(self):
        self.assert_clean({})

    def test_a_tree_in_order_is_clean(self):
        self.assert_clean({
            "io/a.h": header("io/a.h", '#include <sys/uio.h>\n\n#include "absl/types/span.h"\n'),
            "io/a.cc": '#include "io/a.h"\n',
            "tiers/b.cc": '#include "io/a.h"\n#include "tiers/b.h"\n',
            "tests/support/d.h": header("tests/support/d.h", '#include "tools/c.h"\n'),
            "tools/c.cc": '#include <iostream>\n\n#include "CLI/CLI.hpp"\n',
        })

    def test_every_pair_of_folders_is_allowed_or_refused_as_designed(self):
        libraries = ["io", "tiers", "index", "runtime"]
        allowed = {
            "io": ["io"],
            "tiers": ["tiers", "io"],
            "index": ["index"],
            "runtime": libraries,
            "tools": libraries + ["tools"],
            "bench": libraries + ["bench"],
            "examples": libraries + ["examples"],
            "tests": libraries + ["tools", "bench", "examples", "tests"],
        }
        for source, targets in allowed.items():
            for target in allowed:
                path = f"{source}/sub/a.cc"
                for include in (f'#include "{target}/x.h"\n', f"#  include <{target}/x.h>\n"):
                    with self.subTest(source=source, include=include):
                        if target in targets:
                            self.assert_clean({path: include})
                        else:
                            self.assert_fires("arrow", 1, path, include)

    def test_system_headers_named_like_a_folder_are_not_arrows(self):
        self.assert_clean({"index/a.cc": "#include <io>\n#include <ios>\n"})

    def test_includes_start_at_the_root(self):
        self.assert_fires("include-path", 1, "io/a.cc", '#include "../tiers/b.h"\n')
        self.assertEqual(
            self.check({"io/a.h": header("io/a.h"), "io/a.cc": '\n#include "a.h"\n'}),
            (1, [("io/a.cc", 2, "include-path")]))

    def test_files_of_libraries_and_tools_are_short(self):
        for folder in ("io", "tiers", "index", "runtime", "tools"):
            with self.subTest(folder=folder):
                self.assert_clean({f"{folder}/a.cc": "\n" * 450})
                self.assert_fires("file-length", 451, f"{folder}/a.cc", "\n" * 451)
        self.assert_clean({"tests/io/a_test.cc": "\n" * 451, "bench/a_bench.cc": "\n" * 451})

    def test_lines_are_at_most_100_columns(self):
        self.assert_clean({"io/a.cc": "/" * 100 + "\n", "io/b.cc": "\u2192" * 100 + "\n"})
        self.assert_fires("line-length", 2, "io/a.cc", "\n" + "/" * 101 + "\n")
        self.assert_fires("line-length", 1, "tests/io/a_test.cc", "/" * 101)
        self.assert_clean({"tools/a.py": "#" * 200 + "\n"})

    def test_white_space_is_plain(self):
        for path in ("io/a.cc", "tests/a.cc", "tools/a.py", "bench/CMakeLists.txt"):
            with self.subTest(path=path):
                self.assert_fires("tab", 1, path, "//\tx\n")
                self.assert_fires("trailing-space", 2, path, "\n// x \n")
        self.assert_fires("trailing-space", 1, "io/a.cc", "// x\r\n")

    def test_text_is_utf8(self):
        self.assert_fires("encoding", 1, "io/a.cc", b"// \xff\n")

    def test_header_guards_spell_the_path(self):
        for path in ("io/a_b.h", "tests/support/a.h", "examples/embed/a.h"):
            with self.subTest(path=path):
                self.assert_clean({path: header(path)})
                self.assert_fires("guard", 1, path, header("tiers/other.h"))
                self.assert_fires("guard", 1, path, "#pragma once\n")
                self.assert_fires("guard", 1, path, "// nothing\n")
        self.assert_fires("guard", 1, "io/a.h", "#ifndef TERRACE_IO_A_H_\n#define TERRACE_IO_A_H_\n")

    def test_nothing_is_marked_as_unfinished(self):
        for word in ("TO" + "DO", "FIX" + "ME", "X" * 3):
            for path in ("io/a.cc", "tests/a.cc", "tools/a.py"):
                with self.subTest(word=word, path=path):
                    self.assert_fires("unfinished", 1, path, f"# {word}: later\n")
        self.assert_clean({"io/a.cc": "// " + "X" * 6 + " as in mkdtemp, and " + "X" * 2 + "H3\n"})

    def test_libraries_do_not_include_iostream(self):
        for folder in ("io", "tiers", "index", "runtime"):
            with self.subTest(folder=folder):
                self.assert_fires("iostream", 1, f"{folder}/a.cc", "#include <iostream>\n")
        self.assert_clean({"tools/a.cc": "#include <iostream>\n"})

    def test_library_headers_have_no_conditional_compilation(self):
        for directive in ("#ifdef X", "#ifndef X", "#if X", "# if defined(X)"):
            for folder in ("io", "tiers", "index", "runtime"):
                path = f"{folder}/a.h"
                with self.subTest(directive=directive, folder=folder):
                    self.assert_fires("conditional-header", 4, path,
                                      header(path, f"{directive}\n#endif\n"))
        conditional = "#ifdef X\n#endif\n"
        self.assert_clean({"io/a.cc": conditional, "tests/a.h": header("tests/a.h", conditional)})


if __name__ == "__main__":
    unittest.main()
