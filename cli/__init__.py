"""The command line. It knows only the library's face, and imports torch only when it has to."""
