module kvlink

go 1.24
