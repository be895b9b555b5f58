"""Pure text work: cleaning foreign text, sizes and times for people, glyphs, fitting to cells."""
