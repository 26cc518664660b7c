"""Runs as one HTML page, and README tables rendered from committed results.

    python -m common.runs.report runs/               runs/index.html: tables, figures and what each run was
    python -m common.runs.report --readme            render every README table between its markers
    python -m common.runs.report --check             end with 1 when a README is stale; list the
                                                     figures whose code has changed since
    python -m common.runs.report --collect runs/adv_lock/lock/cifar10_cpu --app adv_lock --recipe cifar10_cpu

A table is between `<!-- begin: adv_lock/results/cifar10_cpu -->` and `<!-- end -->`. Its template is
`adv_lock/results/cifar10_cpu.md.j2`, or with `<!-- begin: adv_lock/results/cifar10_cpu using _lock -->` the one of that
name in the same folder, `_lock.md.j2`. It sees `results` (results.json), `table` (rows of table.csv), `published`
(adv_lock/published.yaml), the functions `value`, `seeds` (all seeds of it) and `of("demo")` (`value` of another
recipe), and the filters `percent`, `interval` and `over_seeds`; it may include other templates of the folder.
"""

import argparse
import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import FileSystemLoader, StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from common.errors import USER_ERRNOS, UserError
from common.files import write_text
from common.runs import code, page
from common.runs.record import ROOT, read_results, read_table
from common.runs.tables import by_seed, interval, lookup, over_seeds, percent, read_published

BLOCK = re.compile(
    r"(<!-- begin: (?P<recipe>\S+)(?: using (?P<template>\w+))? -->\n)"
    r"(?P<body>.*?)(?P<end><!-- (?:end|begin: [^>]+) -->|\Z)",
    re.DOTALL,
)
RECIPE = re.compile(r"(?P<app>\w+)/results/\w[\w.-]*")


def render(recipe: str, root: Path = ROOT, template_name: str | None = None) -> str:
    """The table of a recipe such as `adv_lock/results/cifar10_cpu`, as Markdown, by the template of that name or by
    `template_name` in the same folder.

    Errors: `UserError` naming the file that is missing or the line of the template that does not work.
    """
    found = RECIPE.fullmatch(recipe)
    if found is None:
        raise UserError(f"{recipe}: expected a recipe such as adv_lock/results/cifar10_cpu")
    folder, template = root / recipe, root / f"{recipe}.md.j2"
    if template_name is not None:
        template = folder.parent / f"{template_name}.md.j2"
    if not template.is_file():
        raise UserError(f"{template}: no such template")
    if not (folder / "table.csv").is_file():
        raise UserError(f"{folder / 'table.csv'}: no such file; copy it with --collect")
    table = read_table(folder)
    names: dict[str, Any] = {"results": read_results(folder), "table": table, "value": lookup(table)}
    names["seeds"] = by_seed(table)
    names["of"] = functools.partial(_of_another, folder.parent)
    if (published := read_published(root / found["app"])) is not None:
        names["published"] = published
    beside = FileSystemLoader(template.parent)
    environment = SandboxedEnvironment(loader=beside, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "interval": interval, "over_seeds": over_seeds}
    try:
        return environment.from_string(template.read_text(encoding="utf-8")).render(names).strip()
    except TemplateError as error:
        line = f" line {error.lineno}:" if hasattr(error, "lineno") else ""
        raise UserError(f"{template}:{line} {error.message}") from error
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise UserError(f"{template}: {error}") from error


def render_readmes(root: Path = ROOT, *, check: bool = False) -> list[Path]:
    """Render the tables of README.md, every app's README.md and docs/results/*.md; the ones that differed, unwritten
    under `check`."""
    stale = []
    for readme in sorted([root / "README.md", *root.glob("*/README.md"), *root.glob("docs/results/*.md")]):
        if not readme.is_file():
            continue
        old = readme.read_text(encoding="utf-8")
        new = BLOCK.sub(functools.partial(_rendered, readme, root), old)
        if new != old:
            stale.append(readme)
            if not check:
                write_text(readme, new)
    return stale


def older_than_code(root: Path = ROOT) -> list[str]:
    """One line for each committed result whose code has changed since, or is not known. No reason to fail: a change may
    leave a figure as it is. It tells which recipes to run again before a claim is made."""
    # Many results of an app are of one commit.
    changed_since = functools.cache(functools.partial(code.changed_since, root=root))
    lines = []
    for file in sorted(root.glob("*/results/*/results.json")):
        results = read_results(file.parent)
        changes = code.changed(results, root)
        name = file.parent.relative_to(root).as_posix()
        if changes is None:
            # Made before results held hashes: all modules that the run can have loaded, more than it had.
            commit, app = results["environment"]["commit"].removesuffix("+dirty"), name.split("/")[0]
            known = changed_since(commit, (app, "common"))
            count = "it is not known how many" if known is None else str(len(known))
            lines.append(f"{name}: since commit {commit[:12]}, {count} modules of {app} and common changed")
        elif changes:
            others = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            lines.append(f"{name}: changed since it was made: {', '.join(changes[:3])}{others}")
    return lines


def collect(run: Path, app: str, recipe: str, root: Path = ROOT) -> Path:
    """Copy results and table of a finished run to `<app>/results/<recipe>/`, where they are committed."""
    results = read_results(run)
    name = f"{app}/results/{recipe}"
    # Results of no single app, such as the demo's, are in docs/.
    home = results.get("app") if (root / str(results.get("app"))).is_dir() else "docs"
    if home != app:
        raise UserError(f"{run}: is a run of {results.get('app')}, whose results belong in {home}, not in {app}")
    if RECIPE.fullmatch(name) is None or not (root / app).is_dir():
        raise UserError(f"{name}: expected an app's folder and a recipe of letters, digits, - and _")
    if not (run / "table.csv").is_file():
        raise UserError(f"{run / 'table.csv'}: no such file; the run is not complete")
    for file in ("table.csv", "results.json"):
        write_text(root / name / file, (run / file).read_text(encoding="utf-8"))
    return root / name


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """The command line; its status is 0, 1 for a stale README under `--check`, or 2 for what the user can put right."""
    parser = _Parser(prog="python -m common.runs.report", description=__doc__.split("\n")[0], allow_abbrev=False)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("runs", type=Path, nargs="?", help="folder whose runs become one HTML page")
    action.add_argument("--readme", action="store_true", help="render the tables of every README")
    action.add_argument("--check", action="store_true", help="end with 1 when a README is stale; write nothing")
    action.add_argument("--collect", type=Path, metavar="RUN", help="copy the results of a finished run's folder")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the page is written (<runs>/index.html)")
    parser.add_argument("--app", help="app whose results are collected, such as adv_lock")
    parser.add_argument("--recipe", help="name under <app>/results that the collected results get")
    try:
        options = parser.parse_args(argv)
        if options.runs is not None:
            print(page.write(options.runs, options.out, root))
            return 0
        if options.collect is not None:
            if not (options.app and options.recipe):
                raise UserError("--collect: needs --app and --recipe")
            print(collect(options.collect, options.app, options.recipe, root))
            return 0
        stale = render_readmes(root, check=options.check)
        if options.check:
            print("".join(f"{line}\n" for line in older_than_code(root)), end="")
    except UserError as error:
        print(f"report: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in USER_ERRNOS:
            raise
        print(f"report: {error.filename or 'output'}: {error.strerror}; choose another --out", file=sys.stderr)
        return 2
    for readme in stale:
        print(f"{readme}: {'stale; python -m common.runs.report --readme renders it' if options.check else 'rendered'}")
    return 1 if options.check and stale else 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _of_another(results: Path, recipe: str) -> Callable[..., Any]:
    """`value` over the table of another recipe of the app."""
    if RECIPE.fullmatch(f"app/results/{recipe}") is None:
        raise UserError(f"of({recipe!r}): expected the name of a recipe of the app")
    place = results / recipe / "table.csv"
    if not place.is_file():
        raise UserError(f"{place}: no such file; copy it with --collect")
    return lookup(read_table(place.parent))


def _rendered(readme: Path, root: Path, block: re.Match[str]) -> str:
    if block["end"] != "<!-- end -->":
        raise UserError(f"{readme}: {block[1].strip()} has no <!-- end -->")
    return f"{block[1]}{render(block['recipe'], root, block['template'])}\n{block['end']}"


if __name__ == "__main__":
    sys.exit(main())
