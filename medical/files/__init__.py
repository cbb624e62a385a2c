"""Series of scans in and out: NIfTI, DICOM, BIDS, ACDC, folders with a table of times; geometry kept."""
