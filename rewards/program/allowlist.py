"""
The subset of Python that a reward may be written in: a typed allow-list over the syntax tree.

Everything that is not listed is refused before any of it runs: there are no attributes, loops, comprehensions, strings
(but state keys), imports, nested functions or handlers, so nothing can loop, allocate or reach an object it was not given.
Types (bool, scalar, vec3, quat) are checked too, so that accepted programs do not fail halfway through training.
The grammar is in docs/rewards.md, the threat model in docs/security.md.
"""

import ast
import re
import warnings
from dataclasses import dataclass, field

from sb3_tgrpo.rewards.facts.errors import Problem, RewardError, shorten
from sb3_tgrpo.rewards.facts.helpers import HELPERS
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts
from sb3_tgrpo.rewards.facts.vocabulary import ValueType

FILENAME = "<reward>"
MAX_SOURCE = 32_768
MAX_LINES = 1_000
MAX_BRACKETS = 24
MAX_NODES = 8_000
MAX_DEPTH = 40
MAX_NUMBER = 1e6
MAX_PAIRS = 12
MAX_MEMORY = 32

DECLARATIONS = ("n_stages", "max_level", "success_reward")
RESULTS = ("stage", "shaping")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MEMORY = re.compile(r"memory_[a-z0-9_]+")
_START = re.compile(r"start_([a-z0-9_]+)_pos")

Types = dict[str, ValueType]


@dataclass
class Checked:
    """A function that passed, rewritten to return (level, stage, shaping, *memory)."""

    tree: ast.Module
    keys: set[str] = field(default_factory=set)
    start_objects: set[str] = field(default_factory=set)
    memory: tuple[str, ...] = ()
    declared: dict[str, float] = field(default_factory=dict)


def check_source(source: str, facts: TaskFacts) -> Checked:
    """
    Check the text of one ``def compute_reward(state, info)``.

    :param source: Python source.
    :param facts: Facts of the task whose state keys may be read.
    :raises RewardError: If it is not allowed, naming the line, what was found and what is allowed.
    """
    function = _parse(source)
    return _Checker(facts, function).check()


def _parse(source: str) -> ast.FunctionDef:
    if not isinstance(source, str):
        raise RewardError(f"the source must be a string, got {type(source).__name__}")
    if len(source) > MAX_SOURCE or source.count("\n") + source.count("\r") > MAX_LINES:
        raise RewardError(f"the source is larger than {MAX_SOURCE} characters or {MAX_LINES} lines")
    if not source.isascii() or any(character in source for character in "\0\f\\"):
        raise RewardError("the source must be plain ASCII without backslashes: Python folds other letters into other names")
    depth = deepest = 0
    for character in source:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    if deepest > MAX_BRACKETS:
        raise RewardError(f"brackets are nested {deepest} deep; the limit is {MAX_BRACKETS}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source, FILENAME)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RewardError(f"the source is not valid Python: {type(error).__name__}: {shorten(str(error))}") from None
    count, stack = 0, [(tree, 0)]
    while stack:
        node, level = stack.pop()
        count += 1
        if count > MAX_NODES or level > MAX_DEPTH:
            raise RewardError(f"the source has more than {MAX_NODES} nodes or {MAX_DEPTH} levels")
        stack.extend((child, level + 1) for child in ast.iter_child_nodes(node))  # type: ignore[misc]
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        raise RewardError("the source must hold exactly one function, def compute_reward(state, info), and nothing beside it")
    return tree.body[0]


def _number(value: object) -> float | None:
    """A literal as a float, None unless it is a number of ordinary size."""
    if type(value) is int or type(value) is float:
        return float(value) if -MAX_NUMBER <= value <= MAX_NUMBER else None
    return None


class _Refused(Exception):
    def __init__(self, node: ast.AST, message: str, choices: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        try:
            found = ast.unparse(node)
        except (ValueError, RecursionError):  # pragma: no cover - unparse handles all that the limits let through
            found = type(node).__name__
        value = found if len(found) <= 100 else f"{found[:97]}..."
        self.problem = Problem(f"line {getattr(node, 'lineno', '?')}", value, message, choices)


class _Checker:
    def __init__(self, facts: TaskFacts, function: ast.FunctionDef) -> None:
        self.state_types = facts.state_types
        self.objects = facts.names("object")
        self.function = function
        assigned = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.memory = tuple(sorted(name for name in assigned if _MEMORY.fullmatch(name)))
        self.results = tuple(name for name in RESULTS if name in assigned)
        self.keys: set[str] = set()
        self.start_objects: set[str] = set()
        self.declared: dict[str, float] = {}
        self.declarations: list[ast.stmt] = []

    def check(self) -> Checked:
        try:
            body = self._signature()
            types: Types = {}
            statements, returns = self._block(self._declarations(body, types), types)
            if not returns:
                raise _Refused(self.function, "every path must end in return")
        except _Refused as refusal:
            raise RewardError([refusal.problem]) from None
        self.function.body = statements
        self.function.args = ast.arguments(
            posonlyargs=[], args=[ast.arg("state"), ast.arg("info")], kwonlyargs=[], kw_defaults=[], defaults=[]
        )
        tree = ast.fix_missing_locations(ast.Module(body=[self.function], type_ignores=[]))
        return Checked(tree, self.keys, self.start_objects, self.memory, self.declared)

    def _signature(self) -> list[ast.stmt]:
        f, a = self.function, self.function.args
        plain = not (a.posonlyargs or a.kwonlyargs or a.vararg or a.kwarg or a.defaults or a.kw_defaults)
        plain = plain and not (f.decorator_list or f.returns or f.type_comment or getattr(f, "type_params", None))
        if f.name != "compute_reward" or [arg.arg for arg in a.args] != ["state", "info"] or not plain:
            raise _Refused(f, "the signature must be def compute_reward(state, info): no decorators, defaults, annotations")
        if any(arg.annotation or arg.type_comment for arg in a.args):
            raise _Refused(f, "arguments take no annotations")
        if len(self.memory) > MAX_MEMORY:
            raise _Refused(f, f"at most {MAX_MEMORY} memory_ variables")
        first = f.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
            return f.body[1:]
        return f.body

    def _declarations(self, body: list[ast.stmt], types: Types) -> list[ast.stmt]:
        for statement in body[: len(DECLARATIONS)]:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)) if name in DECLARATIONS:
                    pass
                case _:
                    break
            number = _number(value)
            if number is None or number <= 0.0 or name in self.declared:
                raise _Refused(statement, f"{name} must be declared once, as a number in (0, {MAX_NUMBER:g}]")
            self.declared[name] = number
            self.declarations.append(statement)
            types[name] = "scalar"
        if "max_level" not in self.declared:
            raise _Refused(self.function, "declare max_level = <number> in the first statements: the level is bounded by it")
        n_stages = self.declared.setdefault("n_stages", 1.0)
        if n_stages != int(n_stages) or n_stages > 64:
            raise _Refused(self.function, f"n_stages must be a whole number up to 64, it is {n_stages:g}")
        self.declared.setdefault("success_reward", self.declared["max_level"])
        return body

    # statements

    def _block(self, body: list[ast.stmt], types: Types) -> tuple[list[ast.stmt], bool]:
        new: list[ast.stmt] = []
        for i, statement in enumerate(body):
            if isinstance(statement, ast.If):
                new_statement, returns = self._if(statement, types)
            else:
                new_statement, returns = self._simple(statement, types), isinstance(statement, ast.Return)
            new.append(new_statement)
            if returns:
                if i + 1 < len(body):
                    raise _Refused(body[i + 1], "it can never be reached")
                return new, True
        return new, False

    def _simple(self, statement: ast.stmt, types: Types) -> ast.stmt:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
            value, kind = self._expression(statement.value, types)
            self._assign(statement, statement.targets[0].id, kind, types)
            return ast.copy_location(ast.Assign([ast.Name(statement.targets[0].id, ast.Store())], value), statement)
        if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
            self._known(statement, name, types)
            operation = ast.copy_location(ast.BinOp(ast.Name(name, ast.Load()), statement.op, statement.value), statement)
            value, kind = self._expression(ast.fix_missing_locations(operation), types)
            self._assign(statement, name, kind, types)
            return ast.copy_location(ast.Assign([ast.Name(name, ast.Store())], value), statement)
        if isinstance(statement, ast.Return) and statement.value is not None:
            value = self._typed(statement.value, types, "scalar")
            for name in (*self.results, *self.memory):
                if name not in types:
                    raise _Refused(statement, f"{name} is assigned on some paths but not on the one to this return")
            extra: list[ast.expr] = [
                ast.Name(name, ast.Load()) if name in self.results else ast.Constant(0.0) for name in RESULTS
            ]
            extra += [ast.Name(name, ast.Load()) for name in self.memory]
            return ast.copy_location(ast.Return(ast.Tuple([value, *extra], ast.Load())), statement)
        raise _Refused(statement, "statements are name = expression, name += expression, if/elif/else and return expression")

    def _if(self, statement: ast.If, types: Types) -> tuple[ast.stmt, bool]:
        test = self._typed(statement.test, types, "bool")
        yes, no = dict(types), dict(types)
        body, body_returns = self._block(statement.body, yes)
        orelse, else_returns = self._block(statement.orelse, no)
        merged = no if body_returns else yes if else_returns else {n: t for n, t in yes.items() if no.get(n) == t}
        types.clear()
        types.update(merged)
        return ast.copy_location(ast.If(test, body, orelse), statement), body_returns and else_returns

    def _assign(self, node: ast.stmt, name: str, kind: ValueType, types: Types) -> None:
        if not _NAME.fullmatch(name) or "__" in name:
            raise _Refused(node, "names are lower case letters, digits and single underscores")
        if name in HELPERS or name in ("state", "info", "compute_reward"):
            raise _Refused(node, f"{name} cannot be assigned")
        if name in DECLARATIONS and node not in self.declarations:
            raise _Refused(node, f"{name} is a declaration: it is assigned once, as a number, in the first statements")
        if types.get(name, kind) != kind:
            raise _Refused(node, f"{name} is a {types[name]} and cannot become a {kind}")
        if (name in RESULTS or name in self.memory) and kind != "scalar":
            raise _Refused(node, f"{name} must be a scalar, this is a {kind}")
        types[name] = kind

    def _known(self, node: ast.AST, name: str, types: Types) -> ValueType:
        if name not in types:
            choices = tuple(sorted(types)) + tuple(HELPERS)
            raise _Refused(node, f"{name} is not assigned on every path to here", choices)
        return types[name]

    # expressions

    def _typed(self, node: ast.expr, types: Types, wanted: ValueType) -> ast.expr:
        new, kind = self._expression(node, types)
        if kind != wanted:
            raise _Refused(node, f"this must be a {wanted}, it is a {kind}")
        return new

    def _expression(self, node: ast.expr, types: Types) -> tuple[ast.expr, ValueType]:
        method = {
            ast.Constant: self._constant,
            ast.Name: self._name,
            ast.BinOp: self._binary,
            ast.UnaryOp: self._unary,
            ast.BoolOp: self._boolean,
            ast.Compare: self._compare,
            ast.IfExp: self._conditional,
            ast.Call: self._call,
            ast.Subscript: self._subscript,
        }.get(type(node))
        if method is None:
            raise _Refused(node, f"{type(node).__name__} is not allowed here")
        new, kind = method(node, types)  # type: ignore[operator]
        return ast.copy_location(new, node), kind

    def _constant(self, node: ast.Constant, types: Types) -> tuple[ast.expr, ValueType]:
        value = node.value
        if type(value) is bool:
            return ast.Constant(value), "bool"
        number = _number(value)
        if number is None:
            raise _Refused(node, f"constants are numbers up to {MAX_NUMBER:g}, True and False")
        return ast.Constant(number), "scalar"

    def _name(self, node: ast.Name, types: Types) -> tuple[ast.expr, ValueType]:
        return ast.Name(node.id, ast.Load()), self._known(node, node.id, types)

    def _binary(self, node: ast.BinOp, types: Types) -> tuple[ast.expr, ValueType]:
        left = self._typed(node.left, types, "scalar")
        if isinstance(node.op, ast.Pow):
            power = node.right
            if not (isinstance(power, ast.Constant) and type(power.value) in (int, float) and power.value in (2, 3)):
                raise _Refused(node, "powers are ** 2 and ** 3; for roots call sqrt(x)")
            return ast.BinOp(left, ast.Pow(), ast.Constant(float(power.value))), "scalar"  # type: ignore[arg-type]
        if not isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
            raise _Refused(node, "operators are + - * / and ** 2 or 3 on scalars; for vectors call add, sub, scale")
        return ast.BinOp(left, node.op, self._typed(node.right, types, "scalar")), "scalar"

    def _unary(self, node: ast.UnaryOp, types: Types) -> tuple[ast.expr, ValueType]:
        if isinstance(node.op, ast.Not):
            return ast.UnaryOp(node.op, self._typed(node.operand, types, "bool")), "bool"
        if isinstance(node.op, ast.USub | ast.UAdd):
            return ast.UnaryOp(node.op, self._typed(node.operand, types, "scalar")), "scalar"
        raise _Refused(node, "unary operators are -, + and not")

    def _boolean(self, node: ast.BoolOp, types: Types) -> tuple[ast.expr, ValueType]:
        return ast.BoolOp(node.op, [self._typed(value, types, "bool") for value in node.values]), "bool"

    def _compare(self, node: ast.Compare, types: Types) -> tuple[ast.expr, ValueType]:
        if not all(isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE | ast.Eq | ast.NotEq) for op in node.ops):
            raise _Refused(node, "comparisons are < <= > >= == != of scalars")
        left = self._typed(node.left, types, "scalar")
        return ast.Compare(left, node.ops, [self._typed(value, types, "scalar") for value in node.comparators]), "bool"

    def _conditional(self, node: ast.IfExp, types: Types) -> tuple[ast.expr, ValueType]:
        test = self._typed(node.test, types, "bool")
        body, kind = self._expression(node.body, types)
        return ast.IfExp(test, body, self._typed(node.orelse, types, kind)), kind

    def _call(self, node: ast.Call, types: Types) -> tuple[ast.expr, ValueType]:
        if not isinstance(node.func, ast.Name) or node.func.id not in HELPERS:
            raise _Refused(node, "there is no such function", tuple(HELPERS))
        helper = HELPERS[node.func.id]
        kinds = list(helper.args)
        extra = len(node.args) - len(kinds)
        if helper.pairs and extra in range(2, 2 * MAX_PAIRS + 1, 2):
            kinds += ["scalar"] * extra
        if node.keywords or len(node.args) != len(kinds):
            text = ", ".join(kinds) + (", threshold, value, ..." if helper.pairs else "")
            raise _Refused(node, f"{node.func.id} takes ({text}) and no keywords")
        args = [self._typed(arg, types, kind) for arg, kind in zip(node.args, kinds, strict=True)]
        return ast.Call(ast.Name(node.func.id, ast.Load()), args, []), helper.returns

    def _subscript(self, node: ast.Subscript, types: Types) -> tuple[ast.expr, ValueType]:
        index = node.slice.value if isinstance(node.slice, ast.Constant) else None
        if isinstance(node.value, ast.Name) and node.value.id in ("state", "info"):
            if type(index) is not str:
                raise _Refused(node, f"{node.value.id} takes a literal key")
            kind = self._state_key(node, index) if node.value.id == "state" else self._info_key(node, index)
            return ast.Subscript(ast.Name(node.value.id, ast.Load()), ast.Constant(index), ast.Load()), kind
        value, kind = self._expression(node.value, types)
        width = {"vec3": 3, "quat": 4}.get(kind, 0)
        if type(index) is not int or not 0 <= index < width:
            message = f"a {kind} takes a literal index from 0 to {width - 1}" if width else f"a {kind} has no parts"
            raise _Refused(node, message)
        return ast.Subscript(value, ast.Constant(index), ast.Load()), "scalar"

    def _state_key(self, node: ast.AST, key: str) -> ValueType:
        if key not in self.state_types:
            raise _Refused(node, "the state has no such key", tuple(self.state_types))
        self.keys.add(key)
        return self.state_types[key]

    def _info_key(self, node: ast.AST, key: str) -> ValueType:
        start = _START.fullmatch(key)
        if start is not None and start[1] in self.objects:
            self.start_objects.add(start[1])
            self.keys.add(f"{start[1]}_pos")
            return "vec3"
        if key == "step" or key in self.memory:
            return "scalar"
        raise _Refused(node, "info has no such key", ("step", *(f"start_{o}_pos" for o in self.objects), *self.memory))
