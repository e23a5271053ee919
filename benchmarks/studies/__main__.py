"""Write the pages of studies that have been run."""

import argparse
from pathlib import Path

import benchmarks.studies as package
from benchmarks.studies.page import index, study_page
from lorica.compare.assemble import study_result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=package.__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="outputs of lorica compare")
    parser.add_argument("--write", type=Path, required=True, help="folder of the pages")
    words = parser.parse_args()
    words.write.mkdir(parents=True, exist_ok=True)
    studies = {folder: study_result(folder) for folder in words.folders}
    for folder, result in studies.items():
        (words.write / f"{result.name}.md").write_text(study_page(folder, result))
    (words.write / "README.md").write_text(index(studies))


if __name__ == "__main__":
    main()
