"""SQLite behind one writer thread; the only package that knows peewee."""
