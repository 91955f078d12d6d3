# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What the Rust files of a crate name of each other: every path in code, resolved to a file. Used by layers.

It reads tokens, not types: comments and strings are left out, `use` trees are taken apart, `mod` and `#[path]` are
followed from the crate's root file, and a path is walked through modules, re-exports and aliases to the file that
defines what it names. What a macro makes is taken to be defined in the file of the module that is said to hold it; the
call of a method names nothing.
"""

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple, Optional

TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
      | (?P<block>/\*)
      | (?P<raw>[bc]?r(?P<hashes>\#*)"(?:.|\n)*?"(?P=hashes))
      | (?P<string>[bc]?"(?:[^"\\]|\\(?:.|\n))*")
      | (?P<char>b?'(?:[^'\\\n]|\\(?:x[0-9a-fA-F]{2}|u\{[^}]*\}|.))')
      | (?P<lifetime>'\w+)
      | (?P<word>(?:r\#)?[A-Za-z_]\w*)
      | (?P<number>\d\w*(?:\.\d\w*)?)
      | (?P<mark>::|.)""",
    re.VERBOSE,
)
BLOCK_EDGE = re.compile(r"/\*|\*/")
ITEMS = {"fn", "struct", "enum", "union", "trait", "type", "const", "static"}


class Token(NamedTuple):
    kind: str  # word, string, mark or other
    text: str
    line: int


def tokens(text):
    """The tokens of a source file without its comments."""
    out, at, line = [], 0, 1
    while at < len(text):
        found = TOKEN.match(text, at)
        kind, end = found.lastgroup, found.end()
        if kind == "block":
            depth = 1
            while depth:
                edge = BLOCK_EDGE.search(text, end)
                if not edge:
                    return out
                depth += 1 if edge.group() == "/*" else -1
                end = edge.end()
        elif kind == "word":
            out.append(Token("word", found.group().removeprefix("r#"), line))
        elif kind == "mark":
            out.append(Token("mark", found.group(), line))
        elif kind in ("string", "hashes", "raw"):
            out.append(Token("string", found.group()[found.group().index('"') + 1 :].rstrip("#")[:-1], line))
        elif kind != "space":
            out.append(Token("other", "", line))
        line += text.count("\n", at, end)
        at = end
    return out


class Import(NamedTuple):
    """One leaf of a `use` tree."""

    path: tuple
    line: int
    public: bool
    test: bool


class Reference(NamedTuple):
    """A path in code."""

    path: tuple
    line: int
    test: bool


@dataclass(eq=False)
class Module:
    """A module, in a file of its own or inline."""

    name: str
    file: str
    parent: Optional["Module"]
    directory: PurePosixPath  # where its modules' files are
    test: bool = False
    children: dict = field(default_factory=dict)
    items: set = field(default_factory=set)
    imports: dict = field(default_factory=dict)  # name: Import
    globs: list = field(default_factory=list)
    references: list = field(default_factory=list)
    words: set = field(default_factory=set)

    def is_below(self, ancestor):
        """Whether this is that module or a part of it."""
        module = self
        while module is not None and module is not ancestor:
            module = module.parent
        return module is ancestor

    def names_for(self, user):
        """Names that this module has for another one: its private imports are for its own parts."""
        inside = user.is_below(self)
        return self.items | set(self.children) | {n for n, leaf in self.imports.items() if leaf.public or inside}

    def walk(self):
        """This module and all below it."""
        yield self
        for child in self.children.values():
            yield from child.walk()


class Reader:
    """Reads one file into its module: declarations, imports, references."""

    def __init__(self, crate, module, text):
        self.crate, self.tokens, self.at = crate, tokens(text), 0
        self.module, self.stack = module, []  # the stack has the module that a brace returns to, or None
        self.attributes, self.public = [], False

    def peek(self, ahead=0):
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else Token("end", "", 0)

    def skip_group(self, opening, closing):
        """From an opening bracket to behind its closing one: the tokens between."""
        depth, start = 0, self.at + 1
        while self.at < len(self.tokens):
            text = self.peek().text if self.peek().kind == "mark" else ""
            depth += (text == opening) - (text == closing)
            self.at += 1
            if not depth:
                break
        return self.tokens[start : self.at - 1]

    def read(self):
        """The whole file."""
        while self.at < len(self.tokens):
            token = self.peek()
            if token.kind == "mark":
                self.mark(token)
            elif token.kind == "word":
                self.word(token)
            else:
                self.at += 1

    def mark(self, token):
        """Brackets and attributes."""
        if token.text == "#" and (self.peek(1).text == "[" or self.peek(1).text == "!" and self.peek(2).text == "["):
            self.at += 1 if self.peek(1).text == "[" else 2
            self.attributes.append(self.skip_group("[", "]"))
            return
        if token.text == "{":
            self.stack.append(None)
        elif token.text == "}" and self.stack:
            self.module = self.stack.pop() or self.module
        if token.text in "{};":
            self.attributes, self.public = [], False
        self.at += 1

    def word(self, token):
        """Declarations, `use`, or the beginning of a path."""
        before = self.tokens[self.at - 1] if self.at else Token("end", "", 0)
        self.module.words.add(token.text)
        if token.text == "pub" and before.text not in ("$", "."):
            self.public = True
            self.at += 1
            if self.peek().text == "(" and self.peek(1).text in ("crate", "super", "self", "in"):
                self.skip_group("(", ")")
        elif token.text == "use" and self.peek(1).text != "<":
            self.use()
        elif token.text == "mod" and self.peek(1).kind == "word" and self.peek(2).text in (";", "{"):
            self.declare_module()
        elif token.text == "macro_rules" and self.peek(1).text == "!":
            if ["macro_export"] in [[t.text for t in a] for a in self.attributes]:
                self.crate.exported[self.peek(2).text] = self.module.file
            self.module.items.add(self.peek(2).text)
            self.at += 3
        elif token.text in ITEMS and self.peek(1).kind == "word":
            if not any(module is None for module in self.stack) and self.peek(1).text not in ITEMS:
                self.module.items.add(self.peek(1).text)
            self.at += 1
        else:
            self.path(before)

    def testing(self):
        """Whether what is declared next is for tests alone, as all of this module may be."""
        attributes = [[t.text for t in a] for a in self.attributes]
        return self.module.test or ["cfg", "(", "test", ")"] in attributes

    def path(self, before):
        """A path in code, if there is more than one word of it."""
        first, words = self.peek(), [self.peek().text]
        self.at += 1
        while self.peek().text == "::" and self.peek(1).kind == "word":
            words.append(self.peek(1).text)
            self.module.words.add(words[-1])
            self.at += 2
        variable = before.text == "$" and words[0] != "crate"
        if len(words) > 1 and before.text not in ("::", ".") and not variable:
            self.module.references.append(Reference(tuple(words), first.line, self.module.test))

    def use(self):
        """A `use` declaration."""
        self.at += 1
        if self.absent():
            while self.peek().text not in (";", ""):
                self.at += 1
        else:
            if self.peek().text == "::":
                self.at += 1
            self.tree((), self.public, self.testing())
        self.attributes, self.public = [], False

    def absent(self):
        """Whether what is declared next is not there."""
        attributes = [[t.text for t in a] for a in self.attributes]
        return any(a[:2] == ["cfg", "("] and a[3:] == [")"] and a[2] in self.crate.left_out for a in attributes)

    def tree(self, prefix, public, test):
        """One `use` tree: leaves become imports."""
        line = self.peek().line
        if self.peek().text == "{":
            self.at += 1
            while self.peek().text not in ("}", ""):
                self.tree(prefix, public, test)
                if self.peek().text == ",":
                    self.at += 1
            self.at += 1
            return
        if self.peek().text == "*":
            self.at += 1
            self.module.globs.append(Import(prefix, line, public, test))
            return
        path = prefix + (self.peek().text,)
        self.at += 1
        if self.peek().text == "::":
            self.at += 1
            self.tree(path, public, test)
            return
        if path[-1] == "self" and len(path) > 1:
            path = path[:-1]
        name = path[-1]
        if self.peek().text == "as":
            name = self.peek(1).text
            self.at += 2
        leaf = Import(path, line, public, test)
        # Of a name that two scopes of the module import, the first one is kept under the name.
        if name == "_" or name in self.module.imports and self.module.imports[name].path != path:
            name = f"{name} {line}"
        self.module.imports[name] = leaf

    def declare_module(self):
        """`mod name;` or `mod name {`."""
        name, test = self.peek(1).text, self.testing()
        path = next((a[2].text for a in self.attributes if len(a) == 3 and a[0].text == "path"), None)
        inline = self.peek(2).text == "{"
        there = inline or not self.absent()
        self.at += 3
        self.attributes, self.public = [], False
        if inline:
            child = Module(name, self.module.file, self.module, self.module.directory / name, test)
            self.module.children[name] = child
            self.stack.append(self.module)
            self.module = child
        elif there:
            self.crate.load(self.module, name, path, test)


class Resolved(NamedTuple):
    """Where a path leads."""

    file: str  # the file that defines what is named
    module: Optional[Module]  # the module that is named, if it is one
    through: tuple  # files whose private imports the path goes through
    steps: tuple  # (module, name) for each step that the path itself takes inside the crate


class Crate:
    """The modules of a crate, from its root file on."""

    def __init__(self, repository, root, left_out=frozenset()):
        self.repository, self.missing, self.busy = repository, [], set()
        self.left_out = left_out  # configurations: what is declared under `cfg` of one is not there
        self.exported = {}  # macros that their attribute puts into the root module, and their files
        self.root = Module("crate", root, None, PurePosixPath(root).parent)
        self.files = {root}
        Reader(self, self.root, (repository / root).read_text()).read()

    def load(self, parent, name, path, test):
        """The module `name` that is declared in `parent`, from its own file."""
        if path is not None:
            places = [self.normal(parent.directory / path)]
        else:
            places = [parent.directory / f"{name}.rs", parent.directory / name / "mod.rs"]
        place = next((p for p in places if (self.repository / p).is_file()), None)
        if place is None:
            self.missing.append((parent.file, name))
            return
        # A file whose name is not its module's, or mod.rs, has its modules beside it.
        beside = path is not None or place.name == "mod.rs"
        child = Module(name, str(place), parent, place.parent if beside else place.parent / name, test)
        parent.children[name] = child
        self.files.add(str(place))
        Reader(self, child, (self.repository / place).read_text()).read()

    @staticmethod
    def normal(path):
        """A path without its `..`."""
        parts = []
        for part in path.parts:
            if part == ".." and parts:
                parts.pop()
            elif part != ".":
                parts.append(part)
        return PurePosixPath(*parts)

    def resolve(self, module, path, depth=0):
        """Where `path`, written in `module`, leads; None if it leaves the crate or begins with something local."""
        at, rest = module, list(path)
        if rest[0] == "crate":
            at, rest = self.root, rest[1:]
        elif rest[0] in ("self", "super"):
            while rest and rest[0] in ("self", "super"):
                if rest.pop(0) == "super":
                    at = at.parent
                if at is None:
                    return None
        elif not self.knows(at, rest[0]):
            return None
        return self.walk(module, at, rest, depth)

    def knows(self, module, name):
        """Whether a name that a path begins with is one of this module's."""
        return name in module.children or name in module.imports or name in module.items or any(
            self.find_in_glob(module, glob, name) for glob in module.globs)

    def find_in_glob(self, module, glob, name):
        """The module that a glob import takes the name from."""
        if glob in self.busy:
            return None  # the path of the glob itself begins with this name
        self.busy.add(glob)
        target = self.resolve(module, glob.path, 1)
        self.busy.discard(glob)
        source = target.module if target else None
        if source is None or source is module:
            return None
        return source if name in source.names_for(module) else None

    def walk(self, module, at, rest, depth):
        """From the module `at` on; `module` is where the path is written."""
        through, steps = [], []
        while rest and depth < 20:
            name = rest[0]
            steps.append((at, name))
            if name in at.children and not (len(rest) == 1 and name in at.items):
                at, rest = at.children[name], rest[1:]
                continue
            if at is self.root and name in self.exported:
                return Resolved(self.exported[name], None, tuple(through), tuple(steps))
            if name in at.items:
                return Resolved(at.file, None, tuple(through), tuple(steps))
            if name in at.imports:
                link = at.imports[name]
                target = self.resolve(at, link.path, depth + 1) if link.path[0] != name or len(link.path) > 1 else None
                if target is None:
                    return None
                # Names that the root gives to modules are names of modules, like those of its `mod`.
                if not link.public and at.file != module.file and not (at is self.root and target.module):
                    through.append(at.file)
                through += target.through
                # An alias of the writing file is part of how the path is written; of other files' it is a re-export.
                if at.file == module.file:
                    steps = steps[:-1] + list(target.steps)
                if target.module is None:
                    return Resolved(target.file, None, tuple(through), tuple(steps))
                at, rest = target.module, rest[1:]
                continue
            source = next((s for s in (self.find_in_glob(at, glob, name) for glob in at.globs) if s), None)
            if source is None or source is at:
                return Resolved(at.file, None, tuple(through), tuple(steps))
            steps.pop()
            at, depth = source, depth + 1
        return Resolved(at.file, at, tuple(through), tuple(steps))
