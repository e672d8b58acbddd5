module kvlink

go 1.25
