package amd64

import (
	"flag"
	"go/format"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write the generated files")

// What is committed is what the generator writes.
func TestFilesAreFresh(t *testing.T) {
	for name, want := range Files() {
		path := filepath.Join("..", "..", name)
		if filepath.Ext(name) == ".go" {
			b, err := format.Source([]byte(want))
			if err != nil {
				t.Fatal(err)
			}
			want = string(b)
		}
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
			t.Errorf("%s is not what the generator writes: run go test ./cpu/internal/vec/asmgen/amd64 -update", name)
		}
	}
}
