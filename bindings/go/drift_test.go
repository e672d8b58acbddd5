package kvlink

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// source is the package's own text without its tests.
func source(t *testing.T, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	must(t, err)
	var all strings.Builder
	for _, f := range files {
		if !strings.HasSuffix(f, "_test.go") {
			b, err := os.ReadFile(f)
			must(t, err)
			all.Write(b)
		}
	}
	return all.String()
}

func repository(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", path))
	must(t, err)
	return string(b)
}

func word(text, w string) bool { return regexp.MustCompile(`\b` + w + `\b`).MatchString(text) }

func TestEverySymbolIsUsed(t *testing.T) {
	code, shim := source(t, "*.go"), source(t, "shim.*")
	for _, symbol := range strings.Fields(repository(t, "abi/kvlink.symbols")) {
		used := word(code, `C\.go_`+symbol) && word(shim, symbol) || word(code, `C\.`+symbol)
		if !used && !word(source(t, "shim.c"), symbol) {
			t.Errorf("%s is not used", symbol)
		}
	}
}

// Constants are C's own values; here: that none is missing.
func TestEveryConstantIsThere(t *testing.T) {
	code := source(t, "*.go")
	names := regexp.MustCompile(`(?m)^\s+(KVLINK_\w+) = -?\d+,|^#define (KVLINK_\w+) \S`).FindAllStringSubmatch(
		repository(t, "include/kvlink.h"), -1)
	if len(names) < 60 {
		t.Fatalf("%d constants found in the header", len(names))
	}
	for _, n := range names {
		name := n[1] + n[2]
		if name == "KVLINK_FOREVER" { // events are never waited for inside of the library
			continue
		}
		if !word(code, `C\.`+name) {
			t.Errorf("%s is missing", name)
		}
	}
}

// Every field of a struct that Go gives to C is set, and every field of one that it gets is looked at.
func TestEveryFieldIsThere(t *testing.T) {
	header := repository(t, "include/kvlink.h")
	header = regexp.MustCompile(`(?s)/\*.*?\*/`).ReplaceAllString(header, "")
	set, got := fieldsInGo(t)
	structs := regexp.MustCompile(`(?s)typedef struct (\w+) \{(.*?)\}`).FindAllStringSubmatch(header, -1)
	if len(structs) < 20 {
		t.Fatalf("%d structs found in the header", len(structs))
	}
	for _, s := range structs {
		for _, f := range regexp.MustCompile(`(\w+)(\[\d+\])?;`).FindAllStringSubmatch(s[2], -1) {
			field := f[1]
			if field == "reserved" || s[1] == "kvlink_span_t" { // spans are read in place, see Span
				continue
			}
			if !set[s[1]][field] && !got[s[1]][field] {
				t.Errorf("%s.%s is missing", s[1], field)
			}
		}
	}
}

// fieldsInGo finds, by struct of C, the keys of literals, and the fields selected from variables of that type.
func fieldsInGo(t *testing.T) (set, got map[string]map[string]bool) {
	set, got = make(map[string]map[string]bool), make(map[string]map[string]bool)
	add := func(m map[string]map[string]bool, name, field string) {
		if m[name] == nil {
			m[name] = make(map[string]bool)
		}
		m[name][field] = true
	}
	files, err := filepath.Glob("*.go")
	must(t, err)
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), f, nil, 0)
		must(t, err)
		for _, d := range file.Decls {
			types := make(map[string]string) // of this declaration's variables
			ast.Inspect(d, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CompositeLit:
					for _, e := range n.Elts {
						if kv, ok := e.(*ast.KeyValueExpr); ok {
							if key, ok := kv.Key.(*ast.Ident); ok {
								add(set, structOf(n.Type), key.Name)
							}
						}
					}
				case *ast.AssignStmt: // c := C.kvlink_read_t{...}, c := make([]C.kvlink_finding_t, n), f := &c[i]
					name, ok := n.Lhs[0].(*ast.Ident)
					if ok {
						types[name.Name] = assigned(n.Rhs[0], types)
					}
				case *ast.ForStmt:
					if init, ok := n.Init.(*ast.AssignStmt); ok {
						types[init.Lhs[0].(*ast.Ident).Name] = assigned(init.Rhs[0], types)
					}
				case *ast.ValueSpec:
					types[n.Names[0].Name] = structOf(n.Type)
				case *ast.Field:
					for _, name := range n.Names {
						types[name.Name] = structOf(n.Type)
					}
				case *ast.SelectorExpr:
					if x, ok := n.X.(*ast.Ident); ok && types[x.Name] != "" {
						add(got, types[x.Name], n.Sel.Name)
					}
				}
				return true
			})
		}
	}
	return set, got
}

func structOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return structOf(e.X)
	case *ast.ArrayType:
		return structOf(e.Elt)
	case *ast.SelectorExpr:
		if x, ok := e.X.(*ast.Ident); ok && x.Name == "C" {
			return e.Sel.Name
		}
	}
	return ""
}

func assigned(e ast.Expr, types map[string]string) string {
	switch e := e.(type) {
	case *ast.CompositeLit:
		return structOf(e.Type)
	case *ast.CallExpr:
		if len(e.Args) > 0 {
			return structOf(e.Args[0])
		}
	case *ast.UnaryExpr:
		if i, ok := e.X.(*ast.IndexExpr); ok {
			if x, ok := i.X.(*ast.Ident); ok {
				return types[x.Name]
			}
		}
	}
	return ""
}
