"""Check the commit subjects since a base: imperative, one idea, at most 72 characters.

    python tools/check_commits.py [BASE]

BASE is a commit; the default is the merge base with origin/main. Without one, as in a clone of a
single branch, nothing is checked. Merge commits are skipped. Exits with 1 if a subject breaks a
rule, and with 2 if BASE is not a commit.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from itertools import pairwise

MAX_LENGTH = 72
DEFAULT_BRANCH = "origin/main"

# English does not mark the imperative. Endings catch most other forms of verbs (with exceptions of
# the same ending), and a list catches the usual first words of subjects without a verb.
ENDINGS = ("s", "ed", "ing")
IMPERATIVES = frozenset(
    "access address bias bring bypass compress cross discuss dismiss embed exceed express"
    " feed focus guess need pass ping press process proceed seed shed speed stress string".split()
)
NOT_VERBS = frozenset(
    "a an the this that these those it we i you they our my your its one two some all each"
    " every any no not now only also more less faster slower better new old whole many few"
    " several when where how why what who if for from in on at by of to with without and or"
    " but activation baseline benchmark bug calibration checkpoint code compiler cpu data"
    " error feature file function gpu hessian image input kernel layer machine memory model"
    " module output processor prompt question result script text thread token weight".split()
)
# Verbs that begin a second idea after "and"; words that are as often nouns are left out.
SECOND_VERBS = frozenset(
    "add allow avoid build call compare compute convert create decode delete describe"
    " document drop explain extract fix follow handle hide ignore implement improve inject"
    " introduce keep let load make merge move prevent print pull push raise read refuse reject"
    " remove rename replace require restore return rewrite say send share show simplify skip"
    " split stop take test turn update use validate verify warn wrap write".split()
)


def faults(subject: str) -> list[str]:
    """Rules that a subject breaks.

    Args:
        subject: first line of a commit message.
    """
    words = subject.split()
    reasons = []
    if len(subject) > MAX_LENGTH:
        reasons.append(f"{len(subject)} characters, at most {MAX_LENGTH}")
    if not words:
        return [*reasons, "empty"]
    first = words[0]
    if not re.fullmatch(r"[A-Z][a-z]+(-[a-z]+)?", first):
        reasons.append(f"begins with {first!r}; begin with a capitalized verb in the imperative")
    elif first.lower() in NOT_VERBS or (
        first.lower().endswith(ENDINGS) and first.lower() not in IMPERATIVES
    ):
        reasons.append(f"{first!r} is not in the imperative")
    if ";" in subject:
        reasons.append("two ideas, joined by ';'; make two commits")
    # "Read and write files" has one object: only an "and" after the second word counts.
    for before, verb in pairwise(words[2:]):
        if before == "and" and verb.lower() in SECOND_VERBS:
            reasons.append(f"two ideas, joined by 'and {verb}'; make two commits")
    return reasons


def git(*arguments: str) -> str | None:
    """Output of a git command, or None if it fails."""
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, encoding="utf-8"
        )
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def main(arguments: list[str] | None = None) -> int:
    """Print each subject that breaks a rule; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", nargs="?", help=f"default: merge base with {DEFAULT_BRANCH}")
    base: str | None = parser.parse_args(arguments).base
    if base is None:
        merge_base = git("merge-base", DEFAULT_BRANCH, "HEAD")
        if merge_base is None:
            print(f"commit subjects: no {DEFAULT_BRANCH} to compare with, nothing checked")
            return 0
        base = merge_base.strip()
    log = git("log", "--no-merges", "--format=%h %s", f"{base}..HEAD", "--")
    if log is None:
        print(f"commit subjects: {base!r} is not a commit of this repository", file=sys.stderr)
        return 2
    commits = [line.partition(" ")[::2] for line in log.splitlines()]
    wrong = 0
    for commit, subject in commits:
        reasons = faults(subject)
        wrong += bool(reasons)
        if reasons:
            print(f"{commit} {subject}\n    {', '.join(reasons)}")
    print(f"commit subjects since {base[:12]}: {len(commits)} checked, {wrong} to reword")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
