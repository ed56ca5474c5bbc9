package report
import ("testing";"os";"math")
func TestLook(t *testing.T){
 full:=[]int{128,256,512,1024,2048}
 r:=synthetic(syntheticNames,full,10)
 if _,e:=Write("/tmp/look/full",r);e!=nil{t.Fatal(e)}
 Table(os.Stdout,r)
 p:=synthetic(syntheticNames[:4],[]int{64,128,256,512,1024,2048,4096,8192,16384,32768,65536},5); p.Partial=true; p.Results=p.Results[:len(p.Results)-15]; p.Results[3].BitsPerByte=math.NaN(); p.Results[10].BitsPerByte=math.Inf(1)
 if _,e:=Write("/tmp/look/part",p);e!=nil{t.Fatal(e)}
 Table(os.Stdout,p)
 if _,e:=Write("/tmp/look/one",synthetic([]string{"rope"},[]int{128},1));e!=nil{t.Fatal(e)}
}
