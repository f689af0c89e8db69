"""The arguments of a call: in the order of the parameters, however they were spelled.

Two calls that bind the same objects to the same parameters are one: by position or by keyword, with
a default left out or given, with further keywords in any order.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from arraychest.arrays.digests import digest_of
from arraychest.memoize.fingerprint import Digest, Elements, value_fingerprint


class Call(NamedTuple):
    """The arguments of a call.

    Attributes
    ----------
    names
        The fingerprint of the names of the parameters that are not ignored.
    values
        One for each of them, in their order, defaults among them: of ``*args`` a tuple, of
        ``**kwargs`` a tuple of pairs, sorted by name.
    args, kwargs
        What the function is to be called with: what was given, but fresh iterators in the place
        of those that had to be exhausted.
    """

    names: bytes
    values: tuple[Any, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def fingerprint(self, digest: Digest = digest_of, **counts: Any) -> bytes:
        """What the arguments are, in 16 bytes; `value_fingerprint` says what of, and what `counts`.

        Raises
        ------
        ValueTypeError
            There is something in them that cannot be told apart from others.
        """
        return value_fingerprint(self.values, digest, self.names, **counts)


_SOME: list[Any] = [
    [], (), "", "é", b"", bytearray(), range(0), range(1 << 70), {}, {}.values(), {}.items(), set(),
]  # fmt: skip

# Iterators whose elements make them up, and that come to an end by themselves.
_ITERATORS: frozenset[Any] = frozenset({
    types.GeneratorType, map, filter, zip, enumerate, reversed,
    itertools.accumulate, itertools.chain, itertools.combinations,
    itertools.combinations_with_replacement, itertools.compress, itertools.dropwhile,
    itertools.filterfalse, itertools.groupby, itertools.islice, itertools.pairwise,
    itertools.permutations, itertools.product, itertools.starmap, itertools.takewhile,
    itertools.zip_longest,
    *map(type, map(iter, _SOME)), type(reversed([])), type(reversed({})),
    type(reversed({}.values())), type(reversed({}.items())),
})  # fmt: skip


class Parameters:
    """The parameters of a function: what a call's arguments are, however they were spelled.

    Parameters
    ----------
    func
        The function.  A wrapper that takes anything is taken to take what it wraps does.
    ignore
        Names of parameters that do not count; ``"args"`` or ``"*args"``, ``"kwargs"`` or
        ``"**kwargs"`` for all that those take.

    Raises
    ------
    ValueError
        There is no parameter of such a name.
    TypeError
        `ignore` is a string.

    Notes
    -----
    Safe from any thread.
    """

    def __init__(self, func: Any, ignore: Iterable[str] = ()) -> None:
        if isinstance(ignore, str):
            raise TypeError(f"expected a list of names to ignore, found the string {ignore!r}")
        self._ignore = frozenset(ignore)
        # Of a bound method, the function: the errors are its own.
        bound = type(func) is types.MethodType and type(func.__func__) is types.FunctionType
        self._func = func.__func__ if bound else func
        self._self = (func.__self__,) if bound else ()
        self._plain = type(self._func) is types.FunctionType
        self._learn(check=True)

    def _learn(self, *, check: bool) -> None:
        func = self._func
        if self._plain:
            self._state = func.__code__, func.__defaults__, func.__kwdefaults__
        skip = len(self._self)
        own = seen = _signature(func, follow_wrapped=False)
        kinds = {each.kind for each in own}
        if inspect.Parameter.VAR_POSITIONAL in kinds and inspect.Parameter.VAR_KEYWORD in kinds:
            seen = _signature(func, follow_wrapped=True)
        if check:
            unknown = sorted(self._ignore.difference(*map(_names_of, seen[skip:])))
            if unknown:
                raise ValueError(
                    f"expected parameters of {_called(func)} to ignore, of which there are "
                    f"{', '.join(map(_spelled, seen[skip:])) or 'none'}, found {', '.join(unknown)}"
                )
        binder = _Binder(func, seen, skip, self._ignore)
        self._own = binder if seen is own else _Binder(func, own, skip, self._ignore)
        self._binder = binder

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The arguments of a call.

        Raises
        ------
        TypeError
            The function cannot be called so; it is what the function itself would raise.

        Notes
        -----
        About a microsecond.  Generators and other iterators that end are exhausted, unless they
        are ignored; the same iterator given twice is one iterator again.
        """
        if self._plain:
            func, (code, defaults, keywords) = self._func, self._state
            if (
                func.__code__ is not code
                or func.__defaults__ is not defaults
                or func.__kwdefaults__ is not keywords
            ):
                self._learn(check=False)
        binder = self._binder
        given = self._self + args if self._self else args
        try:
            values = binder.values(given, kwargs)
        except TypeError:
            if self._own is binder:
                raise
            # A wrapper that takes what the wrapped function would not.
            binder = self._own
            values = binder.values(given, kwargs)
        if _ITERATORS.isdisjoint(map(type, args)) and (
            not kwargs or _ITERATORS.isdisjoint(map(type, kwargs.values()))
        ):
            return Call(binder.names, values, args, kwargs)
        return _exhausted(binder, values, args, kwargs)


def call_arguments(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], ignore: Iterable[str] = ()
) -> Call:
    """The arguments of a call; `Parameters` looks at the function once for all calls.

    Raises
    ------
    ValueError, TypeError
        As `Parameters` and its `bind` raise them.
    """
    return Parameters(func, ignore).bind(args, kwargs)


def _called(func: Any) -> str:
    return str(getattr(func, "__qualname__", type(func).__qualname__))


def _signature(func: Any, *, follow_wrapped: bool) -> list[inspect.Parameter]:
    try:
        found = inspect.signature(func, follow_wrapped=follow_wrapped)
    except ValueError:  # a builtin that does not say
        found = inspect.signature(_anything)
    return list(found.parameters.values())


def _anything(*args: Any, **kwargs: Any) -> None:
    """What is taken for the signature of a function that has none."""


def _spelled(parameter: inspect.Parameter) -> str:
    return f"{_STARS.get(parameter.kind, '')}{parameter.name}"


def _names_of(parameter: inspect.Parameter) -> set[str]:
    return {parameter.name, _spelled(parameter)}


_STARS: dict[Any, str] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
}


class _Binder:
    """Puts arguments in the order of some parameters.

    Python itself binds them, three times as fast as `Signature.bind` and with its own errors: a
    function is made that has the same parameters, and returns them.

    Attributes
    ----------
    names
        The fingerprint of the names of the parameters that are not ignored.
    starred
        Which of the values `values` returns are those of ``*args`` and of ``**kwargs``, or None.
    """

    __slots__ = ("_bound", "_dropped", "_keywords", "_pick", "names", "starred")

    def __init__(
        self,
        func: Any,
        parameters: Sequence[inspect.Parameter],
        skip: int,
        ignore: frozenset[str],
    ) -> None:
        self._bound = _returning(func, parameters)
        kept = [
            at
            for at, each in enumerate(parameters)
            if at >= skip and ignore.isdisjoint(_names_of(each))
        ]
        self._pick: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None
        if len(kept) < len(parameters):
            # Of one index it would return no tuple.
            several = operator.itemgetter(*kept) if len(kept) > 1 else None
            self._pick = several or (lambda values: tuple([values[at] for at in kept]))
        self._keywords = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
        # Of a wrapper that takes anything: parameters of what it wraps, by keyword.
        self._dropped = ignore.difference(*map(_names_of, parameters))
        kinds = [parameters[at].kind for at in kept]
        self.starred = tuple(kinds.index(star) if star in kinds else None for star in _STARS)
        self.names = value_fingerprint([_spelled(parameters[at]) for at in kept])

    def values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The values of the parameters that are not ignored, in their order."""
        values: tuple[Any, ...] = self._bound(*args, **kwargs)
        if self._keywords:
            rest = values[-1]
            pairs = sorted(rest.items()) if len(rest) < 2 else sorted(rest.items(), key=_FIRST)
            if self._dropped:
                pairs = [pair for pair in pairs if pair[0] not in self._dropped]
            values = (*values[:-1], tuple(pairs))
        return values if self._pick is None else self._pick(values)


_FIRST = operator.itemgetter(0)


def _returning(func: Any, parameters: Sequence[inspect.Parameter]) -> Callable[..., Any]:
    """A function with these parameters and defaults that returns what it is given, as a tuple."""
    spelled: list[str] = []
    values: list[Any] = []
    keywords: dict[str, Any] = {}
    before: Any = None
    starred = False
    for each in parameters:
        positional = each.kind is inspect.Parameter.POSITIONAL_ONLY
        if before is inspect.Parameter.POSITIONAL_ONLY and not positional:
            spelled.append("/")
        if each.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            spelled.append("*")
        starred |= each.kind in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.KEYWORD_ONLY,
        )
        spelled.append(_spelled(each))
        if each.default is not each.empty:
            if each.kind is inspect.Parameter.KEYWORD_ONLY:
                keywords[each.name] = each.default
            else:
                values.append(each.default)
        before = each.kind
    if before is inspect.Parameter.POSITIONAL_ONLY:
        spelled.append("/")
    names = "".join(f"{each.name}, " for each in parameters)
    # Names of parameters are identifiers, which `inspect.Parameter` sees to.
    space: dict[str, Any] = {}
    exec(f"def binder({', '.join(spelled)}): return ({names})", space)  # noqa: S102
    made = space["binder"]
    made.__defaults__ = tuple(values)
    # The function's own dict, where it is that: it may be changed in place.
    theirs = getattr(func, "__kwdefaults__", None) or {}
    same = theirs.keys() == keywords.keys() and all(
        theirs[name] is value for name, value in keywords.items()
    )
    made.__kwdefaults__ = theirs if same else keywords
    plain = func
    while type(plain) is functools.partial:
        plain = plain.func
    # For what it says when it is called wrongly.
    made.__name__ = str(getattr(plain, "__name__", type(plain).__name__))
    made.__qualname__ = str(getattr(plain, "__qualname__", made.__name__))
    return made  # type: ignore[no-any-return]


def _exhausted(
    binder: _Binder, values: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call:
    """A call among whose arguments there are iterators."""
    # Not those that are defaults: they could not be replaced.
    given = {id(each) for each in (*args, *kwargs.values()) if type(each) in _ITERATORS}
    told: dict[int, Elements] = {}

    def tell(value: Any) -> Any:
        if id(value) not in given:
            return value
        if id(value) not in told:
            told[id(value)] = Elements(len(told), list(value))
        return told[id(value)]

    rest, keywords = binder.starred
    found = []
    for at, value in enumerate(values):
        if at == rest:
            found.append(tuple(map(tell, value)))
        elif at == keywords:
            found.append(tuple([(name, tell(each)) for name, each in value]))
        else:
            found.append(tell(value))
    fresh = {identity: iter(each.elements) for identity, each in told.items()}
    return Call(
        binder.names,
        tuple(found),
        tuple([fresh.get(id(each), each) for each in args]),
        {name: fresh.get(id(each), each) for name, each in kwargs.items()},
    )
