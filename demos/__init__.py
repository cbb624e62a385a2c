"""The web demos: a page with one tab a modality, on the same pipelines as the Python API and the command line.

    longtake demo
    from longtake.demos.app import build, launch

app.py is the page and its server; studio.py a modality's tab (timeline, progress, Stop, files, settings);
timeline_editor.py the rows of time and prompt; bench.py the one job that runs; motion_tab.py, video_tab.py and
kernels_tab.py are the tabs. A new modality is one more file like motion_tab.py.
"""
