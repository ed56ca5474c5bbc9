// Package nested runs the tests of the nested module bench, which the pattern
// ./... of the root module does not reach: one command then passes all tests.
// (bench is a module of its own so that programs that import the library do
// not inherit its dependencies; see RATIONALE.md.)
package nested

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestBenchModule(t *testing.T) {
	if os.Getenv("LONGCTX_SKIP_BENCH") != "" {
		t.Skip("LONGCTX_SKIP_BENCH is set")
	}
	dir := filepath.Join("..", "..", "bench")
	// go test caches by the files a test opens: open what the child depends on.
	for _, d := range []string{dir, "../../attention", "../../cpu", "../../kernel", "../../kvcache", "../../rope", "../../tensor", "../../backend", "../../internal/xmath"} {
		err := filepath.WalkDir(d, func(p string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				_, err = os.ReadFile(p)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	args := append([]string{"test"}, tags...)
	if testing.Short() {
		args = append(args, "-short")
	}
	c := exec.Command("go", append(args, "./...")...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	t.Logf("go test in bench:\n%s", out)
	if err != nil {
		t.Fatal(err)
	}
}
