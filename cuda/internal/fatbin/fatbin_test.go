package fatbin

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

const kernels = "../../kernels"

// Whoever changes a kernel compiles it: this test needs no compiler to see it.
func TestImagesAreFresh(t *testing.T) {
	dir := os.DirFS(kernels)
	sources, err := filepath.Glob(filepath.Join(kernels, "*.cu"))
	if err != nil || len(sources) == 0 {
		t.Fatal(sources, err)
	}
	want := map[string]bool{}
	for _, s := range sources {
		s = filepath.Base(s)
		image, manifest := Names(s)
		want[image], want[manifest] = true, true
		why, err := Stale(dir, s)
		if err != nil {
			t.Fatal(err)
		}
		if why != "" {
			t.Errorf("%s: run make cuda", why)
		}
	}
	have, err := filepath.Glob(filepath.Join(kernels, "bin", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range have {
		if f := "bin/" + filepath.Base(f); !want[f] {
			t.Errorf("%s is of no source: delete it", f)
		}
	}
}

// Every kernel is compiled for every architecture and spills in none.
func TestManifests(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(kernels, "bin", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	names := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		m, err := Read(text)
		if err != nil {
			t.Fatal(err)
		}
		archs := map[string][]string{}
		for _, k := range m.Kernels {
			archs[k.Arch] = append(archs[k.Arch], k.Name)
			if k.Spill != 0 {
				t.Errorf("%s for %s spills %d bytes", k.Name, k.Arch, k.Spill)
			}
			if k.Registers == 0 || k.Params == 0 {
				t.Errorf("%s for %s: %+v", k.Name, k.Arch, k)
			}
			if other, ok := names[k.Name]; ok && other != m.Source {
				t.Errorf("%s is in %s and in %s", k.Name, other, m.Source)
			}
			names[k.Name] = m.Source
		}
		if len(archs) != 2 || !slices.Equal(archs["sm_80"], archs["sm_90a"]) || len(archs["sm_80"]) == 0 {
			t.Errorf("%s: kernels by architecture: %v, want the same of sm_80 and sm_90a", m.Source, archs)
		}
	}
}

func TestStale(t *testing.T) {
	fresh := func() fstest.MapFS {
		dir := fstest.MapFS{
			"a.cu":         {Data: []byte("#include \"b.cuh\"\n#include <stdint.h>\n")},
			"b.cuh":        {Data: []byte("  #  include \"p.h\"\n#include \"../sim/x.h\"\n#include \"b.cuh\"\n")},
			"p.h":          {Data: []byte("int x;\n")},
			"other.cuh":    {Data: []byte("")},
			"bin/a.fatbin": {Data: []byte("image")},
		}
		hash, err := Hash(dir, "a.cu")
		if err != nil {
			t.Fatal(err)
		}
		dir["bin/a.json"] = &fstest.MapFile{Data: []byte(`{"Source": "a.cu", "Hash": "` + hash + `", "Image": "6105d6cc76af400325e94d588ce511be5bfdbb73b437dc51eca43917d7a43e3d"}`)}
		return dir
	}
	if s, err := Sources(fresh(), "a.cu"); err != nil || !slices.Equal(s, []string{"a.cu", "b.cuh", "p.h"}) {
		t.Errorf("sources %v, %v", s, err)
	}
	for _, c := range []struct {
		what string
		edit func(fstest.MapFS)
		want string
	}{
		{"nothing", func(fstest.MapFS) {}, ""},
		{"a file that is not included", func(d fstest.MapFS) { d["other.cuh"].Data = []byte("y") }, ""},
		{"the source", func(d fstest.MapFS) { d["a.cu"].Data = append(d["a.cu"].Data, ' ') }, "has changed"},
		{"a file included by one included", func(d fstest.MapFS) { d["p.h"].Data = []byte("int y;\n") }, "has changed"},
		{"the image", func(d fstest.MapFS) { d["bin/a.fatbin"].Data = []byte("imagf") }, "its manifest"},
		{"no image", func(d fstest.MapFS) { delete(d, "bin/a.fatbin") }, "not there"},
		{"no manifest", func(d fstest.MapFS) { delete(d, "bin/a.json") }, "not there"},
	} {
		d := fresh()
		c.edit(d)
		got, err := Stale(d, "a.cu")
		if err != nil || (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s changed: %q, %v, want %q", c.what, got, err, c.want)
		}
	}
}
