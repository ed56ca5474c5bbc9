package bf16

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write the generated files")

// What is committed is what the generator writes.
func TestFilesAreFresh(t *testing.T) {
	for name, want := range Files() {
		path := filepath.Join("..", "..", "bf16", name)
		if *update {
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%s is not what the generator writes: run go test ./cpu/internal/vec/asmgen/bf16 -update", name)
		}
	}
}
