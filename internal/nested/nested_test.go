// Package nested runs the tests of the nested modules, which the pattern ./... of
// the root module does not reach: one command then passes all tests. (They are
// modules of their own so that programs that import the library do not inherit
// their dependencies; see RATIONALE.md.)
package nested

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

var library = []string{"attention", "cpu", "kernel", "kvcache", "rope", "tensor", "backend", "internal/xmath"}

func TestBenchModule(t *testing.T) { testModule(t, "bench", library...) }

func TestRedisModule(t *testing.T) {
	testModule(t, "kvcache/tier/redis", "kvcache/page", "kvcache/tier")
}

func TestS3Module(t *testing.T) { testModule(t, "kvcache/tier/s3", "kvcache/page", "kvcache/tier") }

// testModule runs the tests of a module that depends on these folders.
func testModule(t *testing.T, module string, needs ...string) {
	if os.Getenv("LONGCTX_SKIP_BENCH") != "" {
		t.Skip("LONGCTX_SKIP_BENCH is set")
	}
	root := filepath.Join("..", "..")
	dir := filepath.Join(root, module)
	// go test caches by the files a test opens: open what the child depends on.
	for _, d := range append([]string{module}, needs...) {
		err := filepath.WalkDir(filepath.Join(root, d), func(p string, e fs.DirEntry, err error) error {
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
	t.Logf("go test in %s:\n%s", module, out)
	if err != nil {
		t.Fatal(err)
	}
}
