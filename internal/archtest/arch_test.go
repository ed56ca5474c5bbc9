// Package archtest holds the import arrows of ARCHITECTURE.md as a test.
package archtest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/longctx/longctx/"

// allowed is a statement of policy: what the packages of a folder may import,
// of this module and of others. Do not relax it to fix a build.
var allowed = map[string][]string{
	"tensor":             {},
	"internal/xmath":     {},
	"kernel":             {"tensor", "internal/xmath"},
	"attention":          {"kernel", "tensor", "internal/xmath"},
	"attention/parallel": {"attention", "kernel", "tensor"},
	"recurrence":         {"kernel", "tensor"},
	"rope":               {"kernel", "tensor", "internal/xmath"},
	"kvcache":            {"kernel", "tensor", "internal/xmath", "kvcache/page"},
	"kvcache/prefix":     {"kvcache", "kvcache/page", "kernel", "tensor"},
	"kvcache/policy":     {"kernel", "kvcache", "tensor", "internal/xmath"},
	"kvcache/codec":      {"kernel", "kvcache", "tensor"},
	"kernel/kerneltest":  {"attention", "kernel", "tensor", "internal/xmath", "golang.org/x/sys/unix"},
	"cpu":                {"kernel", "tensor", "cpu/internal/vec", "cpu/internal/vec/bf16", "golang.org/x/sys/unix"},
	"cpu/internal/vec":   {"kernel", "tensor", "golang.org/x/sys/cpu"},
	"cpu/roof":           {"golang.org/x/sys/cpu", "golang.org/x/sys/unix"},
	"cuda":               {"kernel", "tensor", "cuda/internal/driver", "cuda/internal/fatbin"},
	"backend":            {"kernel", "cpu", "cuda"},

	"kvcache/page":          {"kernel", "tensor"},
	"kvcache/tier":          {"kvcache/page"},
	"kvcache/tier/tiertest": {"kvcache/page", "kvcache/tier", "tensor"},
	"kvcache/tier/redis":    {"kvcache/page", "kvcache/tier", "github.com/redis/go-redis/v9"}, // a module of its own
	"kvcache/tier/s3":       {"kvcache/page", "kvcache/tier", "github.com/minio/minio-go/v7"}, // a module of its own

	"cuda/internal/driver":    {"gorgonia.org/cu"},
	"cuda/internal/stubgen":   {},
	"cuda/internal/simdriver": {},

	"cuda/internal/fatbin":       {},
	"cuda/internal/fatbin/build": {"cuda/internal/fatbin"},

	"cpu/internal/vec/asmgen/amd64": {},
	"cpu/internal/vec/asmgen/arm64": {"kernel"},
	"cpu/internal/vec/asmgen/bf16":  {},
	"cpu/internal/vec/bf16":         {"kernel", "tensor", "golang.org/x/sys/cpu"},
}

// anything may be imported by these, and nothing imports them.
var free = []string{"bench", "examples"}

// It parses the files itself, under every build tag at once. Running go list
// instead would let go test reuse a cached result after an import changed.
func TestImports(t *testing.T) {
	root := filepath.Join("..", "..")
	seen := map[string]bool{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		dir := filepath.ToSlash(filepath.Dir(rel))
		if d.IsDir() {
			if slices.Contains(free, filepath.ToSlash(rel)) || strings.HasPrefix(d.Name(), ".") && rel != "." || d.Name() == "testdata" {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return nil
		}
		want, ok := allowed[dir]
		if !ok {
			t.Errorf("%s: package %s has no arrows: add them here and to ARCHITECTURE.md", rel, dir)
			return nil
		}
		seen[dir] = true
		imports, err := importsOf(p)
		for _, imp := range imports {
			own, inside := strings.CutPrefix(imp, module)
			if !inside {
				own = imp
			}
			outside := !inside && strings.Contains(strings.Split(imp, "/")[0], ".")
			if (inside || outside) && !slices.Contains(want, own) {
				t.Errorf("%s imports %s: not in the arrows", rel, imp)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir := range allowed {
		if !seen[dir] {
			t.Errorf("arrows of %s, which has no Go files", dir)
		}
	}
}

// The binding of the CUDA driver is replaced by rewriting one file.
func TestOneFileImportsTheBinding(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "cuda", "internal", "driver", "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	var found []string
	for _, f := range files {
		imports, err := importsOf(f)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(imports, func(s string) bool { return strings.HasPrefix(s, "gorgonia.org") }) {
			found = append(found, filepath.Base(f))
		}
	}
	if !slices.Equal(found, []string{"cu.go"}) {
		t.Errorf("gorgonia.org/cu is imported by %v, want cu.go alone", found)
	}
}

func importsOf(path string) ([]string, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f, err := parser.ParseFile(token.NewFileSet(), path, src, parser.ImportsOnly)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, s := range f.Imports {
		imp, err := strconv.Unquote(s.Path.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, imp)
	}
	return out, nil
}
