"""The page of runs, `cohort report` and `cohort watch`: a run's folder to one HTML file that needs no network.

Enter at `write.write_report` (the file) and `watch.Watch` (the live server). `read` reads a run's folder, `columns`
puts rows into columns, `summary` says what came of the run and why, `payload` packs the page's data. `static/` has the
template, the style and the scripts: `base.js` to `diff.js` are tools, `views/` has one file for each view, `main.js` is
the frame. `static/vendor/` has uPlot (MIT). Missing files and keys hide what is made of them.
"""
