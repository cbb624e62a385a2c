"""The web demos: a page with one tab a modality, on the same pipelines as the Python API and the command line.

    longtake demo
    from longtake.demos.app import build, launch

app.py is the page and its server; form.py a modality's tab (timeline, progress, Stop, files, settings), made of its
domain's knobs; timeline_editor.py the rows of time and prompt; bench.py the one job that runs; tab.py what a tab shows
of results, which motion_tab.py, video_tab.py and kernels_tab.py say for theirs. A modality without a file here gets its
files and a preview.
"""
