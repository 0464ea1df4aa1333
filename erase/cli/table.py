"""Join results of benchmarks into one table, with the paper's figures marked as the paper's.

    erase-anything table results/*/results.json --out results

The results are those of `erase-anything benchmark`, from any machines. Rows of the same model and
adapters become one. The table is printed in Markdown and, with --out, written to table.md,
table.tex and table.html, with all figures in table.csv. The paper's rows follow where results have
one of their columns; they are of FLUX.1 [dev] and of the paper's own prompts.
"""

from collections.abc import Sequence
from pathlib import Path

from convert.arguments import Parser
from flux_jax.errors import exits_cleanly, say


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; see the module's docstring."""
    parser = Parser("erase-anything table", __doc__)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS")
    parser.add_argument("--out", type=Path, help="folder for the table in all formats")
    parser.add_argument(
        "--paper",
        action="append",
        default=[],
        metavar="NUMBER",
        help="also show this table of the paper: 2, 3 or 4; may be repeated",
    )
    options = parser.parse_args(arguments)
    from erase.benchmark.results import read_result

    read = [read_result(path) for path in options.results]
    # Results that are named twice count once.
    results = [result for place, result in enumerate(read) if result not in read[:place]]
    from erase.report.benchmarks import as_markdown, join, write_tables
    from flux_jax.system.files import check_folder

    if options.out is not None:
        check_folder(options.out, "out")
        say(write_tables(options.out, results, options.paper))
    else:
        say(as_markdown(join(results, options.paper)))


if __name__ == "__main__":
    main()
