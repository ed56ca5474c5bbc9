package cuda

import (
	"errors"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/printer"
	"go/token"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/longctx/longctx/kernel"
)

// The tag decides what is linked, never the API: what is exported with it is
// exported without it, under the same signatures.
func TestAPIIsTheSameWithoutTheTag(t *testing.T) {
	with, without := exported(t, true), exported(t, false)
	given := reflect.TypeFor[kernel.Backend]() // embedded without the tag
	for i := range given.NumMethod() {
		name := "Backend." + given.Method(i).Name
		if _, ok := with[name]; !ok {
			t.Errorf("%s is missing with the tag", name)
		}
		delete(with, name)
	}
	if len(with) < 15 {
		t.Errorf("only %v are exported with the tag: the test does not see what there is", slices.Collect(maps.Keys(with)))
	}
	if !maps.Equal(with, without) {
		for _, name := range slices.Sorted(maps.Keys(with)) {
			if with[name] != without[name] {
				t.Errorf("%s is %q with the tag, %q without", name, with[name], without[name])
			}
		}
		for name := range without {
			if _, ok := with[name]; !ok {
				t.Errorf("%s is there only without the tag", name)
			}
		}
	}
}

// exported are the exported functions, methods and types of the package, built
// with the tag or not, with their signatures.
func exported(t *testing.T, tag bool) map[string]string {
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	list, set := map[string]string{}, token.NewFileSet()
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, f.Name(), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		built := true
		for _, c := range file.Comments {
			if c.Pos() < file.Package && constraint.IsGoBuild(c.List[0].Text) {
				x, err := constraint.Parse(c.List[0].Text)
				if err != nil {
					t.Fatal(err)
				}
				built = x.Eval(func(name string) bool { return name == "cuda" && tag || name == "cgo" })
			}
		}
		if !built {
			continue
		}
		for _, d := range file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				name := d.Name.Name
				if d.Recv != nil {
					x := d.Recv.List[0].Type
					if star, ok := x.(*ast.StarExpr); ok {
						x = star.X
					}
					of := x.(*ast.Ident).Name
					if !ast.IsExported(of) {
						continue
					}
					name = of + "." + name
				}
				if d.Name.IsExported() {
					var text strings.Builder
					if err := printer.Fprint(&text, set, d.Type); err != nil {
						t.Fatal(err)
					}
					list[name] = text.String()
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					if s, ok := s.(*ast.TypeSpec); ok && s.Name.IsExported() {
						list[s.Name.Name] = "type"
					}
				}
			}
		}
	}
	return list
}

// A program that asks for CUDA must learn why it cannot have it, and be able to
// tell that from other errors.
func TestOpenSaysWhyNot(t *testing.T) {
	b, err := Open(0)
	if err == nil {
		t.Skip("there is a device")
	}
	var why *UnavailableError
	if b != nil || !errors.Is(err, errors.ErrUnsupported) || !errors.As(err, &why) || why.Reason == "" {
		t.Fatalf("Open = %v, %v, want no backend and an UnavailableError with a reason", b, err)
	}
}
