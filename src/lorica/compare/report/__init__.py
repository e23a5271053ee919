"""The report of a study or of a run: one HTML file that loads nothing, and opens from the disk.

    page.py    template.html with style.css and script.js inside; its policy refuses all else
    study.py   the sections of a study    table.py  charts.py  samples.py  heat.py
    run.py     those of one run           loss_curve.py
    drawing.py scale.py labels.py scatter.py panels.py   SVG, by hand
    text.py    numbers.py                 what others wrote, and numbers, made fit to be read

A page is at most 1 MiB: curves are thinned and long texts are cut until it is, and it says so.
Made again from the same results, it is the same byte for byte.
"""

from lorica.compare.report.write import run_page, study_page, write_report

__all__ = ["run_page", "study_page", "write_report"]
