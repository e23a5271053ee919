"""Task scores, one file each; the file name is the name that `lorica eval --task` takes."""
